-- gRPC: leads each request by the model and version that it names, and makes it name the version that it is led to.
--
-- In all requests that name a model, field 1 is its name and field 2 its version, and of a field that is there several
-- times the last one counts. So a unary message is looked through field by field, without its tensors, and field 2 is
-- appended where it does not say the route's version already. The messages of a stream pass chunk by chunk, and both
-- fields are appended to each: whatever one holds, it can't reach another model or version. What is no message of the
-- protocol ends there: it could be made to swallow what is appended.

local SERVICE = "/inference.GRPCInferenceService/"
local STREAM = SERVICE .. "ModelStreamInfer"
local NAMED = {}
for _, call in ipairs({"Infer", "Ready", "Metadata", "Config", "Statistics"}) do NAMED[SERVICE .. "Model" .. call] = true end

local WINDOW = 2048 -- bytes of a unary message that are fetched at once
local MAX_FIELDS = 65536 -- a message with more would only cost time
local LOOK = 320 -- bytes of a stream's message that are looked at: tags, lengths, a name of 128 bytes, a version

local MAX_TAG = 4294967295 -- servers keep the lower 32 bits of a larger one: it would be another field for them

local byte, char, sub, floor, min = string.byte, string.char, string.sub, math.floor, math.min

local function be32(n)
  return char(floor(n / 16777216) % 256, floor(n / 65536) % 256, floor(n / 256) % 256, n % 256)
end

local function field(tag, text)
  local n = #text
  if n < 128 then return char(tag, n) .. text end
  return char(tag, n % 128 + 128, floor(n / 128)) .. text
end

-- The number at `i` of `s`, as protobuf writes numbers, and the place behind it; nil where it does not end.
local function varint(s, i)
  local x = byte(s, i)
  if x == nil or x < 128 then return x, i + 1 end
  local value, scale = x - 128, 128
  for k = i + 1, i + 9 do
    x = byte(s, k)
    if x == nil then return nil end
    if x < 128 then return value + x * scale, k + 1 end
    value, scale = value + (x - 128) * scale, scale * 128
  end
  return nil
end

-- The tag at `i` of `s`, and the place behind it; nil where there is none that every reader reads alike.
local function key(s, i)
  local tag, behind = varint(s, i)
  if tag == nil or tag < 8 or tag > MAX_TAG or behind - i > 5 then return nil end
  return tag, behind
end

-- The last values of fields 1 and 2 of the message that fills `body` behind its 5-byte prefix, and the prefix's flag;
-- nil if it is broken. `window` is the beginning of `body`.
local function names(body, size, window)
  local base = 0
  local flag, a, b, c, d = byte(window, 1, 5)
  if size < 5 or ((a * 256 + b) * 256 + c) * 256 + d ~= size - 5 then return nil end
  if flag ~= 0 then return "", "", flag end
  local name, version, at = "", "", 5
  for _ = 1, MAX_FIELDS do
    if at == size then return name, version, flag end
    if at - base + 20 > #window and base + #window < size then
      window, base = body:getBytes(at, min(size - at, WINDOW)), at
    end
    local tag, length
    local i = at - base + 1
    tag, i = key(window, i)
    if tag == nil then return nil end
    local kind = tag % 8
    if kind == 2 then
      length, i = varint(window, i)
      if length == nil then return nil end
    elseif kind == 0 then
      length, i = varint(window, i)
      if length == nil then return nil end
      length = 0
    elseif kind == 1 then length = 8
    elseif kind == 5 then length = 4
    else return nil end
    local start = base + i - 1
    at = start + length
    if at > size then return nil end
    if tag == 10 or tag == 18 then
      local text = "?" -- longer than any name
      if i + length - 1 <= #window then text = sub(window, i, i + length - 1)
      elseif length <= 128 then text = body:getBytes(start, length) end
      if tag == 10 then name = text else version = text end
    end
  end
  return nil
end

local function unary(h)
  local body = h:body()
  if body == nil then return end
  local headers = h:headers() -- what was got before the wait for the body may not be used behind it
  local size = body:length()
  local window = body:getBytes(0, min(size, WINDOW))
  local model, version, flag = names(body, size, window)
  if model == nil then
    h:respond({[":status"] = "400"}, "the message is not a request of the inference protocol")
    return
  end
  if flag ~= 0 then -- compressed: for the Python side
    headers:replace(KEY, "*")
    h:clearRouteCache()
    return
  end
  if not plain(model) or not plain(version) then return end
  local stated = headers:get("x-model-name")
  if stated ~= nil and stated ~= model then
    h:respond({[":status"] = "400"}, "the header x-model-name says " .. stated .. ", the message says " .. model)
    return
  end
  local chosen = lead(h, headers, model, version)
  if chosen == nil or chosen == version then return end
  local tail = field(18, chosen)
  local rest = size <= WINDOW and sub(window, 6) or body:getBytes(5, size - 5)
  body:setBytes("\0" .. be32(size - 5 + #tail) .. rest .. tail)
end

-- The name and the version among the leading fields 1, 2 and 3 (the request's id) of the message in `s`.
local function leading(s)
  local name, version, i, len = nil, nil, 1, #s
  while i < len do
    local tag, n = byte(s, i, i + 1)
    i = i + 2
    if tag ~= 10 and tag ~= 18 and tag ~= 26 then break end
    if n >= 128 then
      local high = byte(s, i)
      if high == nil or high >= 128 then break end
      n = n - 128 + high * 128
      i = i + 1
    end
    if tag == 10 then name = sub(s, i, i + n - 1)
    elseif tag == 18 then version = sub(s, i, i + n - 1) end
    i = i + n
  end
  return name, version
end

-- What is appended to a stream's message that begins with `head`. One that openly names another model, or another
-- version, is made to name a model that can't exist: Triton's answer to it says what is wrong, and the stream goes on.
local function ending(head, model, version, forced)
  local name, wanted = leading(head)
  if name ~= nil and name ~= "" and name ~= model then
    return field(10, "(the message names " .. name .. " but the header x-model-name says " .. model .. ")")
  end
  if wanted ~= nil and wanted ~= "" and wanted ~= version then
    return field(10, "(the message asks for version " .. wanted .. " of " .. model .. " but the stream was led to version "
      .. version .. "; say it in the header x-model-version)")
  end
  return forced
end

-- Leads a stream by its headers. One without them, or compressed, is for the Python side; what is not known ends here.
local function stream(h, headers)
  local model = headers:get("x-model-name") or ""
  if model == "" then return end
  local version = headers:get("x-model-version") or ""
  local there = false
  if plain(model) and plain(version) then version, there = lead(h, headers, model, version) end
  if not there then
    local starting = h:metadata():get("starting")
    h:respond({[":status"] = starting and "503" or "404"}, starting or "unknown model or version")
    return
  end
  if version == nil then return end
  local encoding = headers:get("grpc-encoding")
  if encoding ~= nil and encoding ~= "identity" then
    headers:remove(VERSION)
    headers:replace(KEY, "*")
    h:clearRouteCache()
    return
  end
  local forced = field(10, model) .. field(18, version)
  local held = "" -- bytes kept back until enough is here to go on
  local left, skip = 0, 0 -- bytes of the present message still to come, and of the present field of it
  local tail = "" -- what is appended to the present message
  local broken = false -- nothing more is passed on: what can't be read could swallow what is appended to it
  for chunk in h:bodyChunks() do
    local n = chunk:length()
    if broken then
      if n > 0 then chunk:setBytes("") end
    elseif held == "" and skip > n then
      skip, left = skip - n, left - n -- the middle of a tensor
    elseif n > 0 then
      local kept, len = #held, #held + n
      local function get(at, count) -- bytes of what was held back and this chunk together
        if at >= kept then return chunk:getBytes(at - kept, count) end
        if at + count <= kept then return sub(held, at + 1, at + count) end
        return sub(held, at + 1) .. chunk:getBytes(0, at + count - kept)
      end
      local at, mark, out, keep = 0, 0, {}, "" -- `mark`: up to there it is in `out`
      local function ended()
        out[#out + 1] = get(mark, at - mark)
        out[#out + 1] = tail
        mark = at
      end
      while at < len and not broken do
        local here = len - at
        if left == 0 then
          local size, flag = 0, 0
          if here >= 5 then
            local a, b, c, d
            flag, a, b, c, d = byte(get(at, 5), 1, 5)
            size = ((a * 256 + b) * 256 + c) * 256 + d
          end
          if flag ~= 0 then
            broken = true
          elseif here < 5 or (here - 5 < size and here - 5 < LOOK) then
            break
          else
            tail = ending(get(at + 5, min(size, here - 5, LOOK)), model, version, forced)
            out[#out + 1] = "\0" .. be32(size + #tail)
            at, left, skip = at + 5, size, 0
            mark = at
            if left == 0 then ended() end
          end
        elseif skip > 0 then
          local k = min(skip, here)
          at, left, skip = at + k, left - k, skip - k
          if left == 0 then ended() end
        elseif here < min(left, 20) then
          break
        else
          local head = get(at, min(left, 20))
          local tag, i = key(head, 1)
          local kind, length = tag ~= nil and tag % 8 or 3, nil
          if kind == 0 or kind == 2 then length, i = varint(head, i) end
          if kind == 0 and length ~= nil then length = 0 elseif kind == 1 then length = 8 elseif kind == 5 then length = 4 end
          if length == nil or i - 1 + length > left then
            broken = true
          else
            at, left, skip = at + i - 1, left - i + 1, length
            if left == 0 then ended() end
          end
        end
      end
      if broken then
        out = {}
      else
        if left > 0 and at > mark then
          out[#out + 1] = get(mark, at - mark)
        end
        keep = get(at, len - at)
      end
      held = keep
      chunk:setBytes(table.concat(out))
    end
  end
end

function envoy_on_request(h)
  local headers = h:headers()
  headers:remove(KEY)
  headers:remove(VERSION)
  local path = headers:get(":path")
  if NAMED[path] then unary(h) elseif path == STREAM then stream(h, headers) end
end
