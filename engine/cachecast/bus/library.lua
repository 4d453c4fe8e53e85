-- What the engine does for a cluster: one function for each operation that must be one step.
--
-- Loaded by functions.py, which puts version and digest in the place of VERSION: two versions of
-- nodes bring two libraries, and neither replaces the other's. model.py does the same in Python; one
-- suite compares them answer by answer.
--
-- Words: the *state* of a primary is four big-endian doubles: epoch, time of the last call, last
-- version, end of grace (microseconds). The *era* is the epoch in which a value was stored; reads
-- pass over values of another era, whatever their own epoch. A *session* is a node from one hello to
-- the next; whatever it holds (members, occupied channels, users) stands in a roster under its name
-- and in its own list, so that any node can take back what a dead one left.
--
-- Keys are P .. something; see shards.py for those of channels. P is what the name of the state has
-- before "state". Nothing else is ever touched.
--
--   P state             see above            P run          of which engine process it is
--   P sessions          session -> end of lease in ms; -1: being reaped
--   P nodes             session -> what its node said of itself
--   P held:SESSION      set of KIND/SHARD/APP/NAME/FIELD; occupied channels in P held:SESSION:o
--   P ids:SESSION       ring of the latest publishes: number % 4096 -> "number version"
--   P calm              last beat of anybody, and before when nobody is declared dead (ms)
--   P gauge:NAME        session -> what its node counts: connections of an app, say
--   P ended             stream of users whose connections were ended
--   P hooked            apps with webhooks      P hooks:APP    stream of events for them
--   P lost:APP          events for which there was no room      P courier:APP  session that delivers
--
-- Rosters, P S:KIND:..., are hashes: field -> "SESSION=n,SESSION=n" "\n" info. KIND is m (members of
-- a presence channel), o (occupied channels of an app), u (users of an app who are signed in).
--
-- Every function is bounded: by the number and bytes of its arguments, or by a step that is given.

-- Nothing of this is there while the library is loaded; the first call sets it.
local call, pcall, sub, find, match, gmatch, format, pack, unpack, floor, ceil, max, join, sort

local function prepare()
  call, pcall = redis.call, redis.pcall
  sub, find, match, gmatch, format = string.sub, string.find, string.match, string.gmatch, string.format
  pack, unpack = struct.pack, struct.unpack
  floor, ceil, max, join, sort = math.floor, math.ceil, math.max, table.concat, table.sort
end

local SLOTS = 4096        -- publishes of a session that are remembered
local RING_MS = 3600000   -- after its last publish
local MAX_HOOKS = 10000   -- events that wait for a courier
local MAX_ENDED = 1000    -- terminations that a node may read after a gap
local PAGE = 200          -- fields of a roster in one answer
local NONE = '\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0'

local STALE = {err = 'EPOCH say hello again'}
local FENCED = {err = 'FENCED say hello again'}

local function now_us()
  if not call then prepare() end
  local time = call('TIME')
  return time[1] * 1000000 + time[2]
end

local function whole(number)
  return format('%.0f', number)
end

local function root_of(state)
  return state:sub(1, -6)
end

-- The first step of every function: is this the engine that the caller knows?
local function open(state, epoch, during_grace)
  local now = now_us()
  local held = call('GET', state)
  if not held or #held ~= 32 or sub(held, 1, 8) ~= epoch then return STALE end
  local last, version, grace = unpack('>ddd', held, 9)
  if now < last then return STALE end
  if now < grace and not during_grace then
    return {err = 'GRACE ' .. whole(ceil((grace - now) / 1000))}
  end
  return nil, now, version, grace
end

local function save(state, epoch, now, version, grace)
  call('SET', state, epoch .. pack('>ddd', now, version, grace))
end

local function is_leased(root, session, now)
  local score = call('ZSCORE', root .. 'sessions', session)
  return score and tonumber(score) >= 0 and tonumber(score) * 1000 >= now
end

local function add_hook(root, app, body)
  if call('SISMEMBER', root .. 'hooked', app) == 0 then return end
  local key = root .. 'hooks:' .. app
  if call('XLEN', key) >= MAX_HOOKS then call('INCR', root .. 'lost:' .. app) end
  call('XADD', key, 'MAXLEN', MAX_HOOKS, '*', 'e', body)
end

-- Publishing

-- ARGV: epoch, number, then for each event: kind, topic, lifetime in ms, tail of its record.
-- KEYS: state, ids, then for each event of kind V: value, miss.
-- Gives the version of the first event (the others follow it) and 0; 1: it was done before, 2: it is
-- so long ago that nobody can tell.
local function publish(keys, args)
  local epoch, number = args[1], args[2]
  local err, now, last, grace = open(keys[1], epoch)
  if err then return err end
  local slot = number % SLOTS
  local done = call('HGET', keys[2], slot)
  if done then
    local which, version = match(done, '^(%d+) (%d+)$')
    if which == number then return {tonumber(version), 1} end
    if tonumber(which) > tonumber(number) then return {0, 2} end
  end
  local first = max(now, last + 1)
  local version, key = first, 3
  for at = 3, #args, 4 do
    local kind = args[at]
    local record = epoch .. pack('>dd', version, now) .. args[at + 3]
    if kind == 'V' then
      local held, prev = pcall('GETRANGE', keys[key], 0, 23), NONE
      if type(held) == 'string' and sub(held, 1, 8) == epoch then prev = sub(held, 9, 24) end
      call('SET', keys[key], epoch .. record, 'PX', args[at + 2])
      call('DEL', keys[key + 1])
      call('PUBLISH', args[at + 1], 'V' .. prev .. record)
      key = key + 2
    else
      call('PUBLISH', args[at + 1], kind .. record)
    end
    version = version + 1
  end
  -- The ring of a session that was reaped and still publishes must not stay for ever.
  if call('HSET', keys[2], slot, number .. ' ' .. whole(first)) == 1 or slot % 256 == 0 then
    call('PEXPIRE', keys[2], RING_MS)
  end
  save(keys[1], epoch, now, version - 1, grace)
  return {first, 0}
end

-- The value that was stored in this epoch, unless its life is over.
local function alive(key, epoch, now)
  local held = pcall('GET', key)
  if type(held) ~= 'string' or sub(held, 1, 8) ~= epoch then return false end
  local published, lifetime = unpack('>dI4', held, 25)
  return now < published + lifetime * 1000 and held
end

-- ARGV: epoch, most bytes. KEYS: state, values.
-- Gives the time and, for as many of the keys as fit, the record or false.
local function read(keys, args)
  local epoch, room = args[1], tonumber(args[2])
  local err, now = open(keys[1], epoch)
  if err then return err end
  local answer = {now}
  for at = 2, #keys do
    local held = alive(keys[at], epoch, now)
    answer[at] = held and sub(held, 9)
    if held then room = room - #held end
    if room <= 0 then break end
  end
  return answer
end

-- ARGV: epoch, then for each key: record, ms that remain. KEYS: state, values.
-- Gives how many were taken; -1: the grace is over.
local function offer(keys, args)
  local epoch = args[1]
  local err, now, _, grace = open(keys[1], epoch, true)
  if err then return err end
  if now >= grace then return -1 end
  local taken = 0
  for at = 2, #keys do
    local record, remains = args[at * 2 - 2], tonumber(args[at * 2 - 1])
    local held = pcall('GETRANGE', keys[at], 0, 23)
    local is_newer = true
    if type(held) == 'string' and sub(held, 1, 8) == epoch then
      local its_epoch, its_version = unpack('>dd', held, 9)
      local new_epoch, new_version = unpack('>dd', record)
      is_newer = new_epoch > its_epoch or (new_epoch == its_epoch and new_version > its_version)
    end
    if is_newer and remains > 0 then
      -- Published at, by this engine's clock.
      local lifetime = unpack('>I4', record, 25)
      local published = now - (lifetime - remains) * 1000
      local moved = sub(record, 1, 16) .. pack('>d', published) .. sub(record, 25)
      call('SET', keys[at], epoch .. moved, 'PX', remains)
      taken = taken + 1
    end
  end
  return taken
end

-- ARGV: epoch, then for each key: epoch and version >dd. KEYS: state, values.
-- Frees the values that are still these; gives how many.
local function forget(keys, args)
  local err = open(keys[1], args[1])
  if err then return err end
  local n = 0
  for at = 2, #keys do
    local held = pcall('GETRANGE', keys[at], 0, 23)
    if type(held) == 'string' and sub(held, 9, 24) == args[at] then n = n + call('DEL', keys[at]) end
  end
  return n
end

-- ARGV: epoch, ms for which it is remembered, app, channel. KEYS: state, value, miss.
-- Gives 1 if this is the first to miss it.
local function note_miss(keys, args)
  local epoch = args[1]
  local err, now = open(keys[1], epoch)
  if err then return err end
  if alive(keys[2], epoch, now) then return 0 end
  if pcall('GET', keys[3]) == epoch then return 0 end
  call('SET', keys[3], epoch, 'PX', args[2])
  add_hook(root_of(keys[1]), args[3], 'x' .. args[4])
  return 1
end

-- Rosters

local function holders_of(value)
  local cut = find(value, '\n', 1, true)
  return sub(value, 1, cut - 1), sub(value, cut)
end

-- The holders without one session, whether it was there, and what the others hold together.
local function without(holders, session)
  local rest, found, total = {}, false, 0
  for name, n in gmatch(holders, '([^=,]+)=(%d+)') do
    if name == session then
      found = true
    else
      rest[#rest + 1] = name .. '=' .. n
      total = total + n
    end
  end
  return join(rest, ','), found, total
end

-- Where a session's entries of a kind stand: who leaves is announced before what was vacated by it.
local function held_key(root, session, kind)
  return root .. 'held:' .. session .. (kind == 'o' and ':o' or '')
end

local function roster_key(root, shard, kind, app, name)
  return root .. shard .. ':' .. kind .. ':' .. app .. (name ~= '' and '/' .. name or '')
end

-- Tell everybody who came or went. `info` begins with the line's end that it has in the roster.
local function announce(root, topics, kind, app, name, field, sign, total, info)
  if kind == 'm' then
    local news = sign == '+' and pack('>I2', #field) .. field .. sub(info, 2) or field
    call('PUBLISH', topics .. 'c:' .. app .. '/' .. name, sign .. news)
    add_hook(root, app, sign .. name .. '\0' .. field)
  elseif kind == 'u' then
    call('PUBLISH', topics .. 'u:' .. app .. '/' .. field, sign)
  else
    call('PUBLISH', topics .. 'c:' .. app .. '/' .. field, '#' .. whole(total))
    if sign ~= '=' then add_hook(root, app, (sign == '+' and 'o' or 'v') .. field) end
  end
end

-- Take a session out of a field; whoever is then held by nobody is announced gone.
local function drop(root, topics, session, kind, shard, app, name, field)
  local key = roster_key(root, shard, kind, app, name)
  local value = call('HGET', key, field)
  if not value then return 0, 0 end
  local holders, info = holders_of(value)
  local rest, found, total = without(holders, session)
  if not found then return 0, total end
  if rest == '' then
    call('HDEL', key, field)
    announce(root, topics, kind, app, name, field, '-', 0, info)
  else
    call('HSET', key, field, rest .. info)
    if kind == 'o' then announce(root, topics, kind, app, name, field, '=', total, info) end
  end
  return 1, total
end

-- ARGV: epoch, session, topics, kind, shard, app, name, field, n, most fields or 0, 1 to enter again
-- what the node held before, 1 to be given the roster, info. KEYS: state, roster.
-- Gives 1 if nobody held the field, the sum of n, the number of fields, and a page of the roster.
local function enter(keys, args)
  local epoch, session, topics, kind = args[1], args[2], args[3], args[4]
  local shard, app, name, field = args[5], args[6], args[7], args[8]
  local again = args[11] == '1'
  local err, now, _, grace = open(keys[1], epoch, again)
  if err then return err end
  local root = root_of(keys[1])
  -- A ghost's entries come too late then; that is no fault of the session that brings them.
  if again and now >= grace and find(session, '%-0$') then return {0, 0, 0} end
  if not is_leased(root, session, now) then return FENCED end
  local value = call('HGET', keys[2], field)
  local rest, found, total, info = '', false, 0, '\n' .. args[13]
  if value then
    rest, info = holders_of(value)
    rest, found, total = without(rest, session)
  elseif args[10] ~= '0' and not again and call('HLEN', keys[2]) >= tonumber(args[10]) then
    return {err = 'CROWDED ' .. args[10]}
  end
  local mine = session .. '=' .. args[9]
  call('HSET', keys[2], field, (rest == '' and mine or rest .. ',' .. mine) .. info)
  total = total + args[9]
  if not found then
    call('SADD', held_key(root, session, kind), join({kind, shard, app, name, field}, '/'))
  end
  if now >= grace then
    if not value then
      announce(root, topics, kind, app, name, field, '+', total, info)
    elseif kind == 'o' then
      announce(root, topics, kind, app, name, field, '=', total, info)
    end
  end
  local answer = {value and 0 or 1, total, call('HLEN', keys[2])}
  if args[12] == '1' then
    local page = call('HSCAN', keys[2], '0', 'COUNT', PAGE)
    answer[4], answer[5] = page[1], page[2]
  end
  return answer
end

-- ARGV: epoch, session, topics, kind, shard, app, name, field. KEYS: state.
-- Gives 1 if the session held it, and the sum of what the others hold.
local function leave(keys, args)
  local err, now = open(keys[1], args[1])
  if err then return err end
  local root, session = root_of(keys[1]), args[2]
  if not is_leased(root, session, now) then return FENCED end
  local kind, shard, app, name, field = args[4], args[5], args[6], args[7], args[8]
  call('SREM', held_key(root, session, kind), join({kind, shard, app, name, field}, '/'))
  local dropped, total = drop(root, args[3], session, kind, shard, app, name, field)
  return {dropped, total}
end

-- ARGV: epoch, cursor, what fields begin with. KEYS: state, roster.
-- Gives the next cursor ("0" at the end) and fields with their values.
local function page(keys, args)
  local err = open(keys[1], args[1])
  if err then return err end
  local found = call('HSCAN', keys[2], args[2], 'COUNT', PAGE)
  local prefix = args[3]
  if prefix == '' then return found end
  local flat, kept = found[2], {}
  for at = 1, #flat, 2 do
    if sub(flat[at], 1, #prefix) == prefix then
      kept[#kept + 1], kept[#kept + 2] = flat[at], flat[at + 1]
    end
  end
  return {found[1], kept}
end

-- ARGV: epoch, fields. KEYS: state, for each field its roster. Gives values or false.
local function look(keys, args)
  local err = open(keys[1], args[1])
  if err then return err end
  local answer = {}
  for at = 2, #keys do answer[at - 1] = call('HGET', keys[at], args[at]) end
  return answer
end

-- ARGV: epoch. KEYS: state, rosters. Gives how many fields each has.
local function sizes(keys, args)
  local err = open(keys[1], args[1])
  if err then return err end
  local answer = {}
  for at = 2, #keys do answer[at - 1] = call('HLEN', keys[at]) end
  return answer
end

-- Nodes

local function first_of(list)
  return match(list, '^[^,]*')
end

local function has(list, item)
  return find(',' .. list .. ',', ',' .. item .. ',', 1, true) ~= nil
end

-- Why a node must not join another that lives, or nil.
local function difference(facts, node, nonce, protocol, primaries, seals)
  local its_node, its_nonce, its_protocol, its_primaries, its_seals =
    match(facts, '^([^\n]*)\n([^\n]*)\n([^\n]*)\n([^\n]*)\n([^\n]*)$')
  if not its_node then return nil end
  if its_node == node and its_nonce ~= nonce then
    return 'Another node calls itself ' .. node .. '. Give each its own id, or wait until the ' ..
      'lease of the other one has ended.'
  elseif its_protocol ~= protocol then
    return 'This node speaks version ' .. protocol .. ' of the protocol between nodes, node ' ..
      its_node .. ' version ' .. its_protocol .. '. Stop all nodes of one version first.'
  elseif its_primaries ~= primaries then
    return 'This node was given the primaries ' .. primaries .. ', node ' .. its_node .. ' ' ..
      its_primaries .. '. Give all nodes the same bus.urls in the same order.'
  elseif not (has(its_seals, first_of(seals)) and has(seals, first_of(its_seals))) then
    return 'This node and node ' .. its_node .. ' cannot read each other\'s values: fingerprints ' ..
      'of bus.seal_key are ' .. (seals == '' and 'none' or seals) .. ' here and ' ..
      (its_seals == '' and 'none' or its_seals) .. ' there. Give all nodes the same keys; a new ' ..
      'key goes to the end of the list everywhere before it is first anywhere.'
  end
end

-- ARGV: newest epoch that the node has seen, session or "", node, nonce, protocol, primaries,
-- fingerprints of seals, lease in ms, grace in ms, topics, then apps with webhooks. KEYS: state.
-- Gives epoch, time, ms of grace that remain, session, 1 if the session is new, number of sessions.
local function hello(keys, args)
  local state, root = keys[1], root_of(keys[1])
  local seen, session, node, nonce = tonumber(args[1]), args[2], args[3], args[4]
  local sessions, nodes = root .. 'sessions', root .. 'nodes'
  local now = now_us()
  local run = match(call('INFO', 'server'), 'run_id:(%x+)')
  local held = pcall('GET', state)
  local epoch, last, version, grace = 0, 0, 0, 0
  if type(held) == 'string' and #held == 32 then epoch, last, version, grace = unpack('>dddd', held) end
  local fresh = epoch == 0 or call('GET', root .. 'run') ~= run or seen > epoch or now < last
  local all = call('HGETALL', nodes)
  for at = 1, #all, 2 do
    if all[at] ~= session then
      local score = tonumber(call('ZSCORE', sessions, all[at]) or '-1')
      -- Sessions of an earlier epoch are nobody's any more: their nodes come as others.
      local is_alive = not fresh and score * 1000 >= now and match(all[at], '^%d+') == whole(epoch)
      local why = is_alive and difference(all[at + 1], node, nonce, args[5], args[6], args[7])
      if why then return {err = 'MISMATCH ' .. why} end
    end
  end
  -- Whether the ACL lets us publish is found out now and not in the middle of a batch.
  call('PUBLISH', args[10] .. 'control', 'h' .. node)
  version = max(now, version + 1)
  if fresh then
    epoch = max(seen + 1, epoch + 1, now)
    grace = now + args[9] * 1000
    call('SET', root .. 'run', run)
    call('DEL', root .. 'hooked')
    call('SET', root .. 'calm', whole(floor(now / 1000)) .. ' ' .. whole(ceil(grace / 1000)))
    for _, name in ipairs(call('ZRANGE', sessions, 0, -1)) do
      call('ZADD', sessions, whole(ceil(grace / 1000)), name)
    end
    call('ZADD', sessions, whole(ceil(grace / 1000)), whole(epoch) .. '-0')
  end
  -- A session of an earlier epoch, which another node began, is over: what it held is entered again.
  local is_known = not fresh and match(session, '^%d+') == whole(epoch)
  local score = is_known and call('ZSCORE', sessions, session)
  local is_new = not (score and tonumber(score) >= 0 and call('HEXISTS', nodes, session) == 1)
  if is_new then
    session = whole(epoch) .. '-' .. whole(version)
    -- What this node held before, if an answer was lost, is nobody's now.
    for at = 1, #all, 2 do
      if not fresh and sub(all[at + 1], 1, #node + #nonce + 2) == node .. '\n' .. nonce .. '\n' then
        call('ZADD', sessions, 'XX', '-1', all[at])
      end
    end
    call('HSET', nodes, session, join({node, nonce, args[5], args[6], args[7]}, '\n'))
  end
  call('ZADD', sessions, whole(floor(now / 1000) + args[8]), session)
  if #args > 10 then
    for at = 11, #args do call('SADD', root .. 'hooked', args[at]) end
  end
  save(state, pack('>d', epoch), now, version, grace)
  return {epoch, now, max(0, ceil((grace - now) / 1000)), session, is_new and 1 or 0,
    call('ZCARD', sessions)}
end

-- Whether there is a session to reap: one of which reaping has begun, or one whose lease has ended.
local function has_dead(sessions, ms, not_before)
  return call('ZCOUNT', sessions, '-inf', '(0') > 0 or
    (not_before and ms >= tonumber(not_before) and
      call('ZCOUNT', sessions, '-inf', '(' .. whole(ms)) > 0)
end

-- ARGV: epoch, session, lease in ms, then gauges and what they stand at on this node. KEYS: state.
-- Gives time, number of sessions, 1 if there is one to reap, and for each gauge the sum of all nodes.
local function beat(keys, args)
  local err, now, version, grace = open(keys[1], args[1], true)
  if err then return err end
  local root, session, lease = root_of(keys[1]), args[2], tonumber(args[3])
  local sessions, ms = root .. 'sessions', floor(now / 1000)
  local score = call('ZSCORE', sessions, session)
  if not score or tonumber(score) < 0 then return FENCED end
  call('ZADD', sessions, whole(ms + lease), session)
  -- After a time in which nobody was heard, the engine itself stood still: all leases have ended,
  -- and nobody is dead.
  local last, not_before = match(call('GET', root .. 'calm') or '', '^(%d+) (%d+)$')
  if not last or ms - last > lease / 2 then not_before = ms + lease end
  call('SET', root .. 'calm', whole(ms) .. ' ' .. whole(tonumber(not_before)))
  save(keys[1], args[1], now, version, grace)
  local to_reap = now >= grace and has_dead(sessions, ms, not_before)
  local answer = {now, call('ZCARD', sessions), to_reap and 1 or 0}
  for at = 4, #args, 2 do
    local gauge = root .. 'gauge:' .. args[at]
    if call('HSET', gauge, session, args[at + 1]) == 1 then
      call('SADD', held_key(root, session, 'g'), 'g/0/-//' .. args[at])
    end
    local total = 0
    for _, n in ipairs(call('HVALS', gauge)) do total = total + n end
    answer[#answer + 1] = total
  end
  return answer
end

-- ARGV: epoch, most entries, topics. KEYS: state.
-- Takes back a part of what one dead session holds. Gives how many entries, and 1 if there is more.
local function reap(keys, args)
  local err, now = open(keys[1], args[1])
  if err then return err end
  local root, ms = root_of(keys[1]), floor(now / 1000)
  local sessions, step = root .. 'sessions', tonumber(args[2])
  local head = call('ZRANGE', sessions, 0, 0, 'WITHSCORES')
  local session, score = head[1], tonumber(head[2] or 0)
  if not session or score >= ms then return {0, 0} end
  local not_before = match(call('GET', root .. 'calm') or '', '^%d+ (%d+)$')
  if score >= 0 then
    if not not_before or ms < tonumber(not_before) then return {0, 0} end
    call('ZADD', sessions, '-1', session)
  end
  local held, occupied = held_key(root, session, 'm'), held_key(root, session, 'o')
  local entries = call('SPOP', held, step)
  sort(entries)
  if #entries < step then
    local channels = call('SPOP', occupied, step - #entries)
    sort(channels)
    for _, entry in ipairs(channels) do entries[#entries + 1] = entry end
  end
  for _, entry in ipairs(entries) do
    local kind, shard, app, name, field = match(entry, '^(%a)/(%d+)/([^/]+)/([^/]*)/(.*)$')
    if kind == 'g' then
      call('HDEL', root .. 'gauge:' .. field, session)
    elseif kind then
      drop(root, args[3], session, kind, shard, app, name, field)
    end
  end
  if #entries < step then
    call('ZREM', sessions, session)
    call('HDEL', root .. 'nodes', session)
    call('DEL', held, occupied, root .. 'ids:' .. session)
  end
  return {#entries, has_dead(sessions, ms, not_before) and 1 or 0}
end

-- ARGV: epoch, session. KEYS: state. What it holds is given to the reaper at once.
local function retire(keys, args)
  local err = open(keys[1], args[1], true)
  if err then return err end
  return call('ZADD', root_of(keys[1]) .. 'sessions', 'XX', 'CH', '-1', args[2])
end

-- Ending a user's connections

-- ARGV: epoch, topics, app, user. KEYS: state. Gives the entry's id.
local function terminate(keys, args)
  local err = open(keys[1], args[1], true)
  if err then return err end
  local key = root_of(keys[1]) .. 'ended'
  local newest = call('XREVRANGE', key, '+', '-', 'COUNT', 1)[1]
  local prev = newest and newest[1] or '0-0'
  local id = call('XADD', key, 'MAXLEN', MAX_ENDED, '*', 'p', prev, 'a', args[3], 'u', args[4])
  call('PUBLISH', args[2] .. 'control', 't' .. id .. ' ' .. prev .. ' ' .. args[3] .. '/' .. args[4])
  return id
end

-- ARGV: epoch, id of the last one known or "". KEYS: state.
-- Gives the newest id, and up to 100 entries after the one known: id, id before it, app, user.
local function ended(keys, args)
  local err = open(keys[1], args[1], true)
  if err then return err end
  local key = root_of(keys[1]) .. 'ended'
  local newest = call('XREVRANGE', key, '+', '-', 'COUNT', 1)[1]
  local answer = {newest and newest[1] or '0-0'}
  if args[2] ~= '' then
    for _, entry in ipairs(call('XRANGE', key, '(' .. args[2], '+', 'COUNT', 100)) do
      local fields = entry[2]
      answer[#answer + 1] = {entry[1], fields[2], fields[4], fields[6]}
    end
  end
  return answer
end

-- Webhooks

-- ARGV: epoch, app, body. KEYS: state.
local function hook(keys, args)
  local err = open(keys[1], args[1])
  if err then return err end
  add_hook(root_of(keys[1]), args[2], args[3])
  return 1
end

-- ARGV: epoch, session, app, lease in ms, most bytes, id after which. KEYS: state.
-- Gives 1 if the session is the courier, how many events were lost since it was asked last, and
-- events: id, body.
local function collect(keys, args)
  local err, now = open(keys[1], args[1])
  if err then return err end
  local root, session, app = root_of(keys[1]), args[2], args[3]
  if not is_leased(root, session, now) then return FENCED end
  local holder = call('GET', root .. 'courier:' .. app)
  if holder and holder ~= session then return {0, 0} end
  call('SET', root .. 'courier:' .. app, session, 'PX', args[4])
  local lost = tonumber(call('GETDEL', root .. 'lost:' .. app) or '0')
  local answer, room, after = {1, lost}, tonumber(args[5]), args[6]
  for _ = 1, 10 do
    local entries = call('XRANGE', root .. 'hooks:' .. app, after, '+', 'COUNT', 20)
    for _, entry in ipairs(entries) do
      answer[#answer + 1] = {entry[1], entry[2][2]}
      room = room - #entry[2][2]
      after = '(' .. entry[1]
    end
    if #entries < 20 or room <= 0 then break end
  end
  return answer
end

-- ARGV: epoch, session, app, ids of events that are done with. KEYS: state.
-- Gives how many were there; -1: the session is not the courier.
local function settle(keys, args)
  local err = open(keys[1], args[1])
  if err then return err end
  local root, app = root_of(keys[1]), args[3]
  if call('GET', root .. 'courier:' .. app) ~= args[2] then return -1 end
  local n = 0
  for at = 4, #args do n = n + call('XDEL', root .. 'hooks:' .. app, args[at]) end
  return n
end

-- What makes room, or must know of a replica, may run when memory is full.
local LIGHT = {'allow-oom'}
redis.register_function('VERSION_publish', publish)
redis.register_function('VERSION_offer', offer)
redis.register_function('VERSION_hook', hook)
redis.register_function('VERSION_enter', enter)
redis.register_function{function_name = 'VERSION_read', callback = read, flags = LIGHT}
redis.register_function{function_name = 'VERSION_note_miss', callback = note_miss, flags = LIGHT}
redis.register_function{function_name = 'VERSION_forget', callback = forget, flags = LIGHT}
redis.register_function{function_name = 'VERSION_leave', callback = leave, flags = LIGHT}
redis.register_function{function_name = 'VERSION_page', callback = page, flags = LIGHT}
redis.register_function{function_name = 'VERSION_look', callback = look, flags = LIGHT}
redis.register_function{function_name = 'VERSION_sizes', callback = sizes, flags = LIGHT}
redis.register_function{function_name = 'VERSION_hello', callback = hello, flags = LIGHT}
redis.register_function{function_name = 'VERSION_beat', callback = beat, flags = LIGHT}
redis.register_function{function_name = 'VERSION_reap', callback = reap, flags = LIGHT}
redis.register_function{function_name = 'VERSION_retire', callback = retire, flags = LIGHT}
redis.register_function{function_name = 'VERSION_terminate', callback = terminate, flags = LIGHT}
redis.register_function{function_name = 'VERSION_ended', callback = ended, flags = LIGHT}
redis.register_function{function_name = 'VERSION_collect', callback = collect, flags = LIGHT}
redis.register_function{function_name = 'VERSION_settle', callback = settle, flags = LIGHT}
