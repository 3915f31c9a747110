-- HTTP: leads each request by the model and version in its path, and makes the path name the version it is led to.

local KEY = "x-gateway-route" -- "MODEL/VERSION": what the route table is looked up by

function envoy_on_request(h)
  local headers = h:headers()
  headers:remove(KEY)
  local path = headers:get(":path")
  local model, rest = string.match(path, "^/v2/models/(%w[%w_.-]*)(.*)$")
  if model == nil then return end
  local version, behind = string.match(rest, "^/versions/(%d+)(.*)$")
  if version == nil then version, behind = "", rest end
  headers:replace(KEY, model .. "/" .. version)
  h:clearRouteCache()
  local route = h:metadata()
  local chosen, arms = route:get("version"), route:get("arms")
  if chosen == nil and arms ~= nil then -- shares of several versions: "90:1 10:2"
    local draw = math.random() * 100
    for weight, arm in string.gmatch(arms, "([%d.]+):(%d+)") do
      chosen, draw = arm, draw - tonumber(weight)
      if draw < 0 then break end
    end
    headers:replace(KEY, model .. "/" .. chosen)
    h:clearRouteCache()
  end
  if chosen ~= nil then headers:replace(":path", "/v2/models/" .. model .. "/versions/" .. chosen .. behind) end
end
