-- HTTP: leads each request by the model and version in its path, and makes the path name the version it is led to.

function envoy_on_request(h)
  local headers = h:headers()
  headers:remove(KEY)
  headers:remove(VERSION)
  -- What is not understood to its end gets no route: a server might read it as something else.
  local model, rest = string.match(headers:get(":path"), "^/v2/models/([^/?]+)(.*)$")
  if model == nil or not plain(model) then return end
  local wish, behind = string.match(rest, "^/versions/([^/?]+)(.*)$")
  if wish ~= nil and not plain(wish) then return end
  local chosen = lead(h, headers, model, wish or "")
  if chosen ~= nil then headers:replace(":path", "/v2/models/" .. model .. "/versions/" .. chosen .. (behind or rest)) end
end
