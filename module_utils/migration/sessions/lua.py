# Copyright (c) 2026, the Edulink migration project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The two scripts that run inside the store, where nobody can write between a look and a deed.

A session and its entry in the ledger lie in the same cluster slot and are written by one script, so a kill at any
instant leaves both or neither. An entry is `<digest>:<expiry>:<user>`: 16 hex digits of the value that was written, the
second it ends, 32 hex digits of the user's UUID or nothing. A value is ours while its digest and its end are those of
the entry; anything else was written by the service and is left alone. An entry whose session was found ended by the
service lasts for ever (FOREVER): the monolith may prolong the session, it stays ended.
"""

from __future__ import annotations

FOREVER = 253402214400  # 9999-12-31, beyond which no session of the monolith is taken

_OURS = """
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
local function ours(key, value, entry)
  if string.sub(redis.sha1hex(value), 1, 16) ~= string.sub(entry, 1, 16) then return false end
  local left = redis.call('PTTL', key)
  return left >= 0 and math.abs(now + left / 1000 - tonumber(string.match(entry, ':(%d+):'))) < 2
end
"""

# KEYS: session, ledger, session, ledger ... ARGV: the length of what stands before the session key, write, restore, then entry,
# value for each. The fewer arguments, the faster a client in Python is.
# Answer: a character for each session. One whose end has passed while it was on its way is as good as written.
UNCHANGED, WRITTEN, UPDATED, SERVICE, ENDED = b"0", b"1", b"2", b"3", b"4"
CARRY = (
    _OURS
    + """
local from, write, restore = tonumber(ARGV[1]) + 1, ARGV[2] == '1', ARGV[3] == '1'
local said = {}
for i = 1, #KEYS / 2 do
  local key, ledger, new = KEYS[2 * i - 1], KEYS[2 * i], ARGV[2 * i + 2]
  local field, expiry = string.sub(key, from), string.match(new, ':(%d+):')
  local entry = redis.call('HGET', ledger, field)
  local value = redis.pcall('GET', key)
  local code
  if type(value) == 'table' then
    code = '3'
  elseif not value then
    local over = entry and tonumber(string.match(entry, ':(%d+):')) <= now
    if not entry then code = '1'
    elseif over and tonumber(expiry) <= now then code = '0'
    elseif over then code = '2'
    elseif restore then code = '1'
    else
      code = '4'
      if write then redis.call('HSET', ledger, field, (string.gsub(entry, ':%d+:', ':FOREVER:'))) end
    end
  elseif not entry or not ours(key, value, entry) then
    code = '3'
  elseif string.sub(entry, 1, 16) == string.sub(new, 1, 16) and string.match(entry, ':(%d+):') == expiry then
    code = '0'
  else
    code = '2'
  end
  if write and (code == '1' or code == '2') then
    redis.call('SET', key, ARGV[2 * i + 3], 'EXAT', expiry)
    redis.call('HSET', ledger, field, new)
  end
  said[i] = code
end
return table.concat(said)
""".replace("FOREVER", str(FOREVER))
)

# KEYS: session, ledger, session, ledger ... ARGV: the length of what stands before the session key, write, forget.
UNKNOWN, REMOVED, GONE, KEPT = b"0", b"1", b"2", b"3"
REMOVE = (
    _OURS
    + """
local from, write, forget = tonumber(ARGV[1]) + 1, ARGV[2] == '1', ARGV[3] == '1'
local said = {}
for i = 1, #KEYS / 2 do
  local key, ledger = KEYS[2 * i - 1], KEYS[2 * i]
  local field = string.sub(key, from)
  local entry = redis.call('HGET', ledger, field)
  local code = '0'
  if entry then
    local value = redis.pcall('GET', key)
    if type(value) == 'table' then code = '3'
    elseif not value then code = '2'
    elseif ours(key, value, entry) then code = '1'
    else code = '3' end
    if write then
      if code == '1' then redis.call('DEL', key) end
      if code == '1' or forget then redis.call('HDEL', ledger, field) end
    end
  end
  said[i] = code
end
return table.concat(said)
"""
)
