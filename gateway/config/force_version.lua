-- gRPC: makes every request message name the model and the version of the route that it takes.
--
-- Field 1 is the model's name and field 2 its version in all requests that name a model, and of a field that is there
-- several times the last one counts; so both are appended to each message and its length prefix is raised. Messages
-- pass chunk by chunk: what lies in the middle of one is not touched. The beginning of each message is looked at, and
-- one that openly names another model, or another version, is made to name a model that can't exist: Triton's answer
-- to that message then says what is wrong, and a stream goes on.

local LOOK = 320 -- bytes of a message that are looked at: tags, lengths, a name of 128 bytes, a version

local function be32(n)
  return string.char(math.floor(n / 16777216) % 256, math.floor(n / 65536) % 256, math.floor(n / 256) % 256, n % 256)
end

local function field(tag, text)
  local n = #text
  if n < 128 then return string.char(tag, n) .. text end
  return string.char(tag, n % 128 + 128, math.floor(n / 128)) .. text
end

-- The name and the version among the leading fields 1, 2 and 3 (the request's id) of the message in `s`.
local function leading(s)
  local name, version, i, len = nil, nil, 1, #s
  while i < len do
    local tag, n = string.byte(s, i, i + 1)
    i = i + 2
    if tag ~= 10 and tag ~= 18 and tag ~= 26 then break end
    if n >= 128 then
      local high = string.byte(s, i)
      if high == nil or high >= 128 then break end
      n = n - 128 + high * 128
      i = i + 1
    end
    if tag == 10 then name = string.sub(s, i, i + n - 1)
    elseif tag == 18 then version = string.sub(s, i, i + n - 1) end
    i = i + n
  end
  return name, version
end

function envoy_on_request(h)
  local context = h:filterContext()
  if context == nil then return end
  local model, version = context:get("model"), context:get("version")
  if model == nil or version == nil then return end
  local metadata = h:streamInfo():dynamicMetadata()
  metadata:set("gateway", "model", model)
  metadata:set("gateway", "version", version)
  local headers = h:headers()
  local stated = headers:get("x-model-name")
  if stated ~= nil and stated ~= model then
    h:respond({[":status"] = "400"}, "the header x-model-name says " .. stated .. ", the message says " .. model)
    return
  end
  headers:remove("content-length") -- the body grows
  headers:remove("grpc-encoding") -- compressed messages don't come this way: one that did is refused as malformed
  local forced = field(10, model) .. field(18, version)

  local function ending(head)
    local name, wanted = leading(head)
    if name ~= nil and name ~= "" and name ~= model then
      return field(10, "(the message names " .. name .. " but the header x-model-name says " .. model .. ")")
    end
    if wanted ~= nil and wanted ~= "" and wanted ~= version then
      return field(10, "(the message asks for version " .. wanted .. " of " .. model .. " but the request was led to version "
        .. version .. "; say it in the header x-model-version)")
    end
    return forced
  end

  local held, left, tail = "", 0, "" -- bytes kept back until enough of a message is here; bytes of it still to come
  for chunk in h:bodyChunks() do
    local n = chunk:length()
    if n > 0 and not (held == "" and left > n) then
      local from, out = 0, {}
      local function get(at, count) -- bytes of what was held back and this chunk together
        local kept = #held
        if at >= kept then return chunk:getBytes(at - kept, count) end
        if at + count <= kept then return string.sub(held, at + 1, at + count) end
        return string.sub(held, at + 1) .. chunk:getBytes(0, at + count - kept)
      end
      local len = #held + n
      local keep = ""
      while from < len do
        local here = len - from
        if left > 0 then
          local k = math.min(left, here)
          out[#out + 1] = get(from, k)
          from, left = from + k, left - k
          if left == 0 then out[#out + 1] = tail end
        elseif here < 5 then
          keep, from = get(from, here), len
        else
          local flag, a, b, c, d = string.byte(get(from, 5), 1, 5)
          local size = ((a * 256 + b) * 256 + c) * 256 + d
          if here - 5 < size and here - 5 < LOOK then
            keep, from = get(from, here), len
          else
            tail = ending(get(from + 5, math.min(size, here - 5, LOOK)))
            out[#out + 1] = string.char(flag) .. be32(size + #tail)
            from, left = from + 5, size
            if left == 0 then out[#out + 1] = tail end
          end
        end
      end
      held = keep
      chunk:setBytes(table.concat(out))
    elseif n > 0 then
      left = left - n
    end
  end
end
