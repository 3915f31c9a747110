-- What both protocols' scripts share: which route a request takes, and which version it gets there.
--
-- The route table is looked up by the header KEY. Under a model's name lies its main route, whose metadata says
--   model    its name
--   stable   the version of requests that name none; or shares of several: "90:1 10:2"; absent: there is none
--   here     the versions that this very route leads to, each between spaces: " 1 2 "; absent: the Python side chooses
--   there    the versions that have routes of their own, under "MODEL/VERSION"
-- The header VERSION is for logs and statistics: it is set only to versions that the table knows.

local KEY, VERSION = "x-gateway-route", "x-gateway-version"

-- Whether a name or a version may stand in a header. Asked once for each: patterns are what costs most here.
local MAX_NAME = 128
local known, count = {[""] = true}, 0
local function plain(text)
  if known[text] then return true end
  if #text > MAX_NAME or not string.find(text, "^%w[%w_.-]*$") then return false end
  if count == 20000 then known, count = {[""] = true}, 0 end
  known[text], count = true, count + 1
  return true
end

local function drawn(shares)
  local left, chosen = math.random() * 100, nil
  for weight, version in string.gmatch(shares, "([%d.]+):(%d+)") do
    chosen, left = version, left - tonumber(weight)
    if left < 0 then break end
  end
  return chosen
end

-- Chooses the route for this model and version, and returns the version to force (nil: there is no such route, or the
-- Python side chooses) and whether there is such a route.
local function lead(h, headers, model, wish)
  headers:replace(KEY, model)
  h:clearRouteCache()
  local route = h:metadata()
  local here = route:get("here")
  if here == nil then return nil, route:get("model") ~= nil end
  local chosen = wish
  if wish == "" then
    chosen = route:get("stable") or ""
    if string.find(chosen, ":", 1, true) then chosen = drawn(chosen) end
  end
  local spaced = " " .. chosen .. " "
  if not string.find(here, spaced, 1, true) then
    headers:replace(KEY, model .. "/" .. chosen)
    h:clearRouteCache()
    local there = route:get("there")
    if there == nil or not string.find(there, spaced, 1, true) then return nil, false end
  end
  headers:replace(VERSION, chosen)
  return chosen, true
end
