"""Topic queues in Redis, which many machines share.

Keys, all in one hash slot: `{name}:generation` is the number g of the current snapshot, and each generation has the
hashes `{name}:g:topics`, `drawn`, `shown`, `clicked` (by video) and `prior` (by topic), the sorted sets
`{name}:g:queue:TOPIC`, and the list `{name}:g:journal` of what was recorded. Scripts, which Redis runs one at a time,
change and read them. A snapshot becomes a generation that nobody reads; the last script of its loading adds the end of
the journal and turns to it, in one step.

Redis keeps all of it in memory; without `appendonly yes` it forgets the latest events when it is killed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from typing import Any

import redis

from serving.topic_queues.settings import QueueSettings
from serving.topic_queues.store import BATCH, Event, Row, Scored, Snapshot, TopicStore, Video, answering, event_rows
from transform.contract import ContractError

PASSWORD = "SHORTLIST_QUEUES_PASSWORD"  # the environment variable
LOADING_SECONDS = 600  # after which a process that loads a snapshot is taken for dead

_OF_VIDEO = ("topics", "drawn", "shown", "clicked")

# KEYS[1] is `{name}:generation`; ARGV starts with min_exposures, min_click_rate and prior_strength.
_ADD = """
local base = string.sub(KEYS[1], 1, -11)
local least, rate, strength = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local function add(generation, row, journal)
  local function key(name) return base .. generation .. ':' .. name end
  local video, topics = row[1], redis.call('HGET', key('topics'), row[1])
  if not topics or topics == '[]' then
    topics = row[2]
    redis.call('HSET', key('topics'), video, topics)
  end
  redis.call('HSETNX', key('drawn'), video, row[3])
  local drawn = tonumber(redis.call('HGET', key('drawn'), video))
  local shown = redis.call('HINCRBY', key('shown'), video, row[4])
  local clicked = redis.call('HINCRBY', key('clicked'), video, row[5])
  local stays = drawn == 1
  if shown >= least then stays = clicked / shown >= rate end
  for _, topic in ipairs(cjson.decode(topics)) do
    redis.call('HSETNX', key('prior'), topic, ARGV[2])
    if stays then
      local prior = tonumber(redis.call('HGET', key('prior'), topic))
      local score = (clicked + strength * prior) / (shown + strength)
      redis.call('ZADD', key('queue:' .. topic), string.format('%.17g', score), video)
    else
      redis.call('ZREM', key('queue:' .. topic), video)
    end
  end
  if journal then
    redis.call('RPUSH', key('journal'), cjson.encode({video, row[4], row[5], row[6]}))
  end
end
"""
# Further arguments: the rows; the generation, or nothing for the current one, in which case the journal is kept.
_RECORD = """
local current = redis.call('GET', KEYS[1]) or '0'
for _, row in ipairs(cjson.decode(ARGV[4])) do
  add(ARGV[5] or current, row, not ARGV[5])
end
"""
# Further arguments: the old generation and the new, the part of the journal, the snapshot's instant, whether to turn.
_CATCH_UP = """
if (redis.call('GET', KEYS[1]) or '0') ~= ARGV[4] then
  return redis.error_reply('another snapshot was loaded at the same time')
end
for _, text in ipairs(redis.call('LRANGE', base .. ARGV[4] .. ':journal', ARGV[6], ARGV[7])) do
  local video, shown, clicked, at = unpack(cjson.decode(text))
  if at >= tonumber(ARGV[8]) then
    local function old(name) return redis.call('HGET', base .. ARGV[4] .. ':' .. name, video) end
    add(ARGV[5], {video, old('topics'), old('drawn'), shown, clicked, at}, true)
  end
end
if ARGV[9] == '1' then redis.call('SET', KEYS[1], ARGV[5]) end
"""
# KEYS[1] as above; the rest of ARGV are topics or videos.
_READ = """
local base = string.sub(KEYS[1], 1, -11) .. (redis.call('GET', KEYS[1]) or '0') .. ':'
local found = {}
"""
_TOPS = """
local n = tonumber(table.remove(ARGV, 1))
for i, topic in ipairs(ARGV) do
  found[i] = n > 0 and redis.call('ZREVRANGE', base .. 'queue:' .. topic, 0, n - 1, 'WITHSCORES') or {}
end
return found
"""
_VIDEOS = """
for _, video in ipairs(ARGV) do
  local function get(name) return redis.call('HGET', base .. name, video) end
  if get('topics') then found[#found + 1] = {video, get('topics'), get('shown'), get('clicked')} end
end
return found
"""


class RedisStore(TopicStore):
    """A `TopicStore` in a Redis server, 5 or newer.

    Args:
        url: `redis://[user:password@]host:port/database`, or rediss:// for TLS; the variable SHORTLIST_QUEUES_PASSWORD
            gives the password where it has none.
        settings: Thresholds and smoothing.
        name: Keeps several stores of one database apart.

    Raises:
        ContractError: No server answers there.
    """

    def __init__(
        self,
        url: str,
        settings: QueueSettings = QueueSettings(),  # noqa: B008 - frozen
        name: str = "topic-queues",
    ) -> None:
        self._settings, self._base = settings, f"{{{name}}}:"
        self._where = url.rpartition("@")[2]  # without the password
        self._key = f"{self._base}generation"
        try:
            secret = {"password": os.environ[PASSWORD]} if PASSWORD in os.environ else {}
            self._client: Any = redis.Redis.from_url(url, decode_responses=True, **secret)
            self._client.ping()
        except (redis.RedisError, ValueError) as error:
            raise ContractError(
                f"{self._where}: expected a Redis server: {error}: start one, or mend the address"
            ) from error
        self._record = self._client.register_script(_ADD + _RECORD)
        self._catch_up = self._client.register_script(_ADD + _CATCH_UP)
        self._tops = self._client.register_script(_READ + _TOPS)
        self._videos = self._client.register_script(_READ + _VIDEOS)

    def record(self, events: Sequence[Event]) -> None:
        """See `TopicStore.record`; up to `BATCH` events in one step."""
        rows = event_rows(events, self._settings)
        with self._answering():
            self._add(rows)

    def tops(self, topics: Sequence[str], n: int) -> list[Scored]:
        """See `TopicStore.tops`."""
        with self._answering():
            found = self._tops([self._key], [n, *topics])
        return [list(zip(flat[::2], map(float, flat[1::2]), strict=True)) for flat in found]

    def videos(self, video_ids: Collection[str]) -> dict[str, Video]:
        """See `TopicStore.videos`."""
        with self._answering():
            found = self._videos([self._key], list(video_ids))
        return {v: Video(v, tuple(json.loads(topics)), int(shown), int(clicked)) for v, topics, shown, clicked in found}

    def replace(self, snapshot: Snapshot) -> None:
        """See `TopicStore.replace`; one process loads at a time, others wait."""
        with self._answering(), self._client.lock(f"{self._base}loading", timeout=LOADING_SECONDS):
            old = int(self._client.get(self._key) or 0)
            new = old + 1
            self._drop(new)  # what a process left that died while loading
            if priors := snapshot.priors(self._settings):
                self._client.hset(f"{self._base}{new}:prior", mapping={t: repr(rate) for t, rate in priors.items()})
            self._add(snapshot.rows(self._settings), new)
            done = 0
            while done + BATCH <= self._client.llen(f"{self._base}{old}:journal"):
                self._run(self._catch_up, old, new, done, done + BATCH - 1, snapshot.before, 0)
                done += BATCH
            self._run(self._catch_up, old, new, done, -1, snapshot.before, 1)
            self._drop(old)

    def close(self) -> None:
        """See `TopicStore.close`."""
        self._client.close()

    def _answering(self) -> AbstractContextManager[None]:
        return answering(self._where, redis.RedisError)

    def _add(self, rows: Iterable[Row], *generation: int) -> None:
        remaining = iter(rows)
        while batch := list(islice(remaining, BATCH)):
            self._run(self._record, json.dumps(batch), *generation)

    def _run(self, script: Any, *arguments: str | int) -> None:
        used = self._settings
        script([self._key], [used.min_exposures, repr(used.min_click_rate), repr(used.prior_strength), *arguments])

    def _drop(self, generation: int) -> None:
        base = f"{self._base}{generation}:"
        queues = [f"{base}queue:{topic}" for topic in self._client.hkeys(f"{base}prior")]
        self._client.unlink(*queues, *(f"{base}{name}" for name in (*_OF_VIDEO, "prior", "journal")))
