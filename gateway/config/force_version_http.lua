-- HTTP: makes the path name the model and the version of the route that the request takes.

function envoy_on_request(h)
  local context = h:filterContext()
  if context == nil then return end
  local model, version = context:get("model"), context:get("version")
  if model == nil or version == nil then return end
  local metadata = h:streamInfo():dynamicMetadata()
  metadata:set("gateway", "model", model)
  metadata:set("gateway", "version", version)
  local headers = h:headers()
  local path = headers:get(":path")
  local rest = string.match(path, "^/v2/models/[^/?]+/versions/[^/?]+(.*)$") or string.match(path, "^/v2/models/[^/?]+(.*)$")
  headers:replace(":path", "/v2/models/" .. model .. "/versions/" .. version .. (rest or ""))
end
