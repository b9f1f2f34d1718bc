-- /etc/haproxy/redis-cache.lua: caches banmesh's answers in a Redis that several HAProxy nodes share. For recipes/redis-cache.cfg.
--
--   http-request lua.ip_cache_get   sets txn.cached to 1 (banned) or 0, if Redis has an answer for the client
--   http-request lua.ip_cache_put   stores txn.ip.banned for 10 seconds
--
-- While Redis is down nothing is cached, and every request asks banmesh. Lua connects through "listen redis" of that recipe and not
-- directly. Otherwise a request would wait for seconds for a Redis that is down, and in HAProxy 3.4 for minutes.

local host, port = "127.0.0.1", 6380
local seconds = 10

-- Sends one command and returns its value, or nil if there is none or Redis does not answer.
local function redis(...)
    local words = { ... }
    local request = "*" .. #words .. "\r\n"
    for _, word in ipairs(words) do
        request = request .. "$" .. #word .. "\r\n" .. word .. "\r\n"
    end
    local socket = core.tcp()
    socket:settimeout(1)
    if not socket:connect(host, port) then
        socket:close()
        return nil
    end
    local value
    if socket:send(request) then
        local head = socket:receive("*l")
        if head and head:sub(1, 1) == "$" and head:sub(1, 3) ~= "$-1" then
            value = socket:receive("*l")
        end
    end
    socket:close()
    return value
end

local function key(txn)
    return "banmesh:" .. tostring(txn.sf:src())
end

core.register_action("ip_cache_get", { "http-req" }, function(txn)
    local value = redis("GET", key(txn))
    if value == "0" or value == "1" then
        txn:set_var("txn.cached", tonumber(value))
    end
end, 0)

core.register_action("ip_cache_put", { "http-req" }, function(txn)
    local banned = txn:get_var("txn.ip.banned")
    if banned ~= nil then
        redis("SET", key(txn), tostring(math.floor(banned)), "EX", tostring(seconds))
    end
end, 0)
