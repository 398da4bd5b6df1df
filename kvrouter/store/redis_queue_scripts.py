"""The steps of a message queue on Redis, each a script that the server runs alone. What they mean is in `redis_queues`.

The hash `groups` knows of every group how long it may be idle (in milliseconds, 0: for ever) and when a member last
came; it is what tells a group of ours that was lost from one that never was. Needs Redis 6.2.
"""

from typing import Final

__all__ = ["CONSUMERS", "DONE", "FETCH", "FORGET", "JOIN", "LATER", "PUBLISH", "PURGE", "TRIM"]

_NOW: Final = """
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local function whole(number) return string.format('%.0f', number) end
local function trim(age)
  if tonumber(age) > 0 then redis.call('XTRIM', KEYS[1], 'MINID', '=', whole(math.max(0, now - age))) end
end
local function ours(group, orphan)
  redis.call('HSET', KEYS[2], group, orphan .. ' ' .. whole(now))
end
"""
_ORPHANS: Final = """
local function drop_orphans(tag)
  local all = redis.call('HGETALL', KEYS[2])
  for at = 1, #all, 2 do
    local orphan, seen = string.match(all[at + 1], '(%d+) (%d+)')
    if tonumber(orphan) > 0 and tonumber(seen) + tonumber(orphan) < now then
      redis.pcall('XGROUP', 'DESTROY', KEYS[1], all[at])
      redis.call('HDEL', KEYS[2], all[at])
      redis.call('DEL', tag .. ':due:' .. all[at])
    end
  end
end
"""

# KEYS: stream, sequences by message id, times until which they are known. ARGV: data, id, milliseconds that the id is
# known, retention, messages at most, age. Returns the sequence and whether it was known; no sequence where it is full.
PUBLISH: Final = (
    _NOW
    + """
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', whole(now), 'LIMIT', 0, 100)) do
  redis.call('ZREM', KEYS[3], id)
  redis.call('HDEL', KEYS[2], id)
end
if ARGV[2] ~= '' then
  local known = redis.call('HGET', KEYS[2], ARGV[2])
  if known and tonumber(redis.call('ZSCORE', KEYS[3], ARGV[2]) or '0') > now then return {known, 1} end
end
trim(ARGV[6])
local full = redis.call('XLEN', KEYS[1]) >= tonumber(ARGV[5])
if full and ARGV[4] == 'work' then return {'', 0} end
local sequence = redis.call('XADD', KEYS[1], 'MAXLEN', '=', ARGV[5], '*', 'id', ARGV[2], 'data', ARGV[1])
if ARGV[2] ~= '' and tonumber(ARGV[3]) > 0 then
  redis.call('HSET', KEYS[2], ARGV[2], sequence)
  redis.call('ZADD', KEYS[3], whole(now + ARGV[3]), ARGV[2])
end
return {sequence, 0}
"""
)

# KEYS: stream, groups, times of the group. ARGV: group, where it begins, orphan, retention, tag. Returns whether it
# may.
JOIN: Final = (
    _NOW
    + _ORPHANS
    + """
drop_orphans(ARGV[5])
if ARGV[4] == 'work' then
  for _, name in ipairs(redis.call('HKEYS', KEYS[2])) do
    if name ~= ARGV[1] then return 0 end
  end
end
redis.pcall('XGROUP', 'CREATE', KEYS[1], ARGV[1], ARGV[2], 'MKSTREAM')
ours(ARGV[1], ARGV[3])
return 1
"""
)

# KEYS: stream, groups, times of the group. ARGV: group, messages at most, milliseconds until they are delivered again,
# orphan, age. Returns the deliveries (sequence, fields, number); what was read last; milliseconds until one is due.
FETCH: Final = (
    _NOW
    + """
local group, count = ARGV[1], tonumber(ARGV[2])
local until_then = whole(now + ARGV[3])
if redis.call('HEXISTS', KEYS[2], group) == 0 or redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('DEL', KEYS[3])
  redis.pcall('XGROUP', 'CREATE', KEYS[1], group, '0', 'MKSTREAM')
end
ours(group, ARGV[4])
trim(ARGV[5])
local found = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', whole(now), 'LIMIT', 0, count)) do
  local claimed = redis.call('XCLAIM', KEYS[1], group, 'member', 0, id)[1]
  if claimed then
    local state = redis.call('XPENDING', KEYS[1], group, id, id, 1)[1]
    redis.call('ZADD', KEYS[3], until_then, id)
    found[#found + 1] = {id, claimed[2], state[4]}
  else
    redis.call('XACK', KEYS[1], group, id)
    redis.call('ZREM', KEYS[3], id)
  end
end
if #found < count then
  local fresh = redis.call('XREADGROUP', 'GROUP', group, 'member', 'COUNT', count - #found, 'STREAMS', KEYS[1], '>')
  for _, entry in ipairs(fresh and fresh[1][2] or {}) do
    redis.call('ZADD', KEYS[3], until_then, entry[1])
    found[#found + 1] = {entry[1], entry[2], 1}
  end
end
local last = '0-0'
for _, info in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local name, delivered
  for at = 1, #info, 2 do
    if info[at] == 'name' then name = info[at + 1] end
    if info[at] == 'last-delivered-id' then delivered = info[at + 1] end
  end
  if name == group then last = delivered end
end
local due = redis.call('ZRANGE', KEYS[3], 0, 0, 'WITHSCORES')
return {found, last, due[2] and math.max(0, due[2] - now) or -1}
"""
)

# KEYS: stream, groups, times of the group. ARGV: group, retention, sequences.
DONE: Final = """
for at = 3, #ARGV do
  redis.pcall('XACK', KEYS[1], ARGV[1], ARGV[at])
  redis.call('ZREM', KEYS[3], ARGV[at])
  if ARGV[2] == 'work' then redis.call('XDEL', KEYS[1], ARGV[at]) end
end
return 1
"""

# KEYS: times of the group. ARGV: milliseconds from now, sequences.
LATER: Final = """
local clock = redis.call('TIME')
local due = string.format('%.0f', clock[1] * 1000 + math.floor(clock[2] / 1000) + ARGV[1])
for at = 2, #ARGV do redis.call('ZADD', KEYS[1], 'XX', due, ARGV[at]) end
return 1
"""

# KEYS: stream. ARGV: age. Returns how many messages stay.
TRIM: Final = (
    _NOW
    + """
trim(ARGV[1])
return redis.call('XLEN', KEYS[1])
"""
)

# KEYS: stream, groups. ARGV: tag.
PURGE: Final = """
redis.call('XTRIM', KEYS[1], 'MAXLEN', '=', 0)
for _, name in ipairs(redis.call('HKEYS', KEYS[2])) do
  redis.pcall('XGROUP', 'DESTROY', KEYS[1], name)
  redis.pcall('XGROUP', 'CREATE', KEYS[1], name, '$', 'MKSTREAM')
  redis.call('DEL', ARGV[1] .. ':due:' .. name)
end
return 1
"""

# KEYS: stream, groups. ARGV: tag, retention. Returns name, messages never delivered, those delivered and not done with.
# A log's are counted by the server, of version 7 and later; before, by reading them.
CONSUMERS: Final = (
    _NOW
    + _ORPHANS
    + """
drop_orphans(ARGV[1])
if redis.call('EXISTS', KEYS[1]) == 0 then return {} end
local found = {}
for _, info in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local name, last, lag
  for at = 1, #info, 2 do
    if info[at] == 'name' then name = info[at + 1] end
    if info[at] == 'last-delivered-id' then last = info[at + 1] end
    if info[at] == 'lag' then lag = info[at + 1] end
  end
  local pending = redis.call('ZCARD', ARGV[1] .. ':due:' .. name)
  local waiting = ARGV[2] == 'work' and math.max(0, redis.call('XLEN', KEYS[1]) - pending) or lag
  waiting = waiting or #redis.call('XRANGE', KEYS[1], '(' .. last, '+')
  found[#found + 1] = {name, waiting, pending}
end
return found
"""
)

# KEYS: stream, groups, times of the group. ARGV: group. Returns whether there was one.
FORGET: Final = """
redis.call('DEL', KEYS[3])
redis.pcall('XGROUP', 'DESTROY', KEYS[1], ARGV[1])
return redis.call('HDEL', KEYS[2], ARGV[1])
"""
