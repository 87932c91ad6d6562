"""The optional blocks of inputs (`features/blocks.py`) in the order of their columns: what each writes, and where it works meanwhile."""

from __future__ import annotations

from typing import Any

from stream_dmgin.counters.layout import FEATURES, N_KINDS, N_RATES
from stream_dmgin.counters.read import engagement_shown
from stream_dmgin.counters.trend import N_TREND, N_TREND_USER, TREND_SCRATCH, put_trend, read_whole
from stream_dmgin.features.audience import (
    AUDIENCE_SCRATCH,
    N_AUDIENCE,
    N_AUDIENCE_USER,
    N_READERS,
    find_met,
    put_audience,
    put_audience_size,
    put_audience_user,
    put_readers,
    put_readers_user,
)
from stream_dmgin.features.blocks import (
    AUDIENCE,
    CONTENT,
    ENGAGEMENT,
    FATIGUE,
    N_SESSION,
    N_SURFACE,
    ONLINE,
    PAGE,
    PASSED,
    READERS,
    RHYTHM,
    SESSION,
    SURFACE,
    TASTE,
    TREND,
    put_session,
    put_surface,
)
from stream_dmgin.features.bound import D_BLOCKS, D_D, I_C_DENSE, N_WHERE, W_COUNTERS
from stream_dmgin.features.content import (
    CONTENT_SCRATCH,
    N_CONTENT,
    N_CONTENT_USER,
    N_PASSED,
    N_PASSED_USER,
    find_read,
    put_content,
    put_content_user,
    put_passed,
    put_passed_user,
)
from stream_dmgin.features.fatigue import FATIGUE_SCRATCH, N_FATIGUE, N_FATIGUE_USER, put_fatigue, put_fatigue_user
from stream_dmgin.features.online import N_ONLINE, N_ONLINE_USER, ONLINE_SCRATCH, put_online, put_online_user
from stream_dmgin.features.page import PAGE_SCRATCH, put_page, put_page_user
from stream_dmgin.features.rhythm import N_RHYTHM, put_rhythm
from stream_dmgin.features.taste import N_TASTE, N_TASTE_USER, TASTE_SCRATCH, put_taste, put_taste_user
from stream_dmgin.native import f32, i64, kernel

# Scratch memory of the blocks, in bytes
_TASTE = TREND_SCRATCH
_FATIGUE = _TASTE + TASTE_SCRATCH
_ONLINE = _FATIGUE + FATIGUE_SCRATCH
_CONTENT = (_ONLINE + ONLINE_SCRATCH + 7) // 8 * 8
_AUDIENCE = _CONTENT + CONTENT_SCRATCH
_PAGE = _AUDIENCE + AUDIENCE_SCRATCH
BLOCKS_SCRATCH = _PAGE + PAGE_SCRATCH
_RATE_12H = N_RATES + 1  # among an entity's features


@kernel
def put_user_blocks(
    w: Any, r: Any, now: Any, surface: Any, page: Any, user_rate: Any, user_logit: Any, ring_rate: Any, ring_logit: Any, scratch: Any,
    to: Any,
) -> None:  # fmt: skip
    """Those of the user as floats at an address, and what candidates need of user row r; `surface`: its number, `page`: hash
    of the page's item."""
    where = i64(w, (N_WHERE,))
    counters, blocks, out = where[W_COUNTERS], where[D_BLOCKS], to
    if blocks & SESSION:
        put_session(w, r, now, user_rate, user_logit, out)
        out += 4 * N_SESSION
    if blocks & SURFACE:
        put_surface(w, r, now, surface, ring_rate, ring_logit, out)
        out += 4 * N_SURFACE
    if blocks & TREND:
        read_whole(counters, scratch, out)
        out += 4 * N_TREND_USER
    if blocks & TASTE:
        put_taste_user(w, r, now, scratch + _TASTE, out)
        out += 4 * N_TASTE_USER
    if blocks & FATIGUE:
        put_fatigue_user(w, r, now, scratch + _FATIGUE, out)
        out += 4 * N_FATIGUE_USER
    if blocks & ONLINE:
        put_online_user(w, r, now, surface, scratch + _ONLINE, out)
        out += 4 * N_ONLINE_USER
    if blocks & (CONTENT | PASSED):
        find_read(w, r, scratch + _CONTENT)
    if blocks & CONTENT:
        put_content_user(w, scratch + _CONTENT, out)
        out += 4 * N_CONTENT_USER
    if blocks & PASSED:
        put_passed_user(w, r, scratch + _CONTENT, out)
        out += 4 * N_PASSED_USER
    if blocks & (AUDIENCE | READERS):
        put_audience_user(w, r, scratch + _AUDIENCE)
    if blocks & AUDIENCE:
        put_audience_size(w, scratch + _AUDIENCE, out)
        out += 4 * N_AUDIENCE_USER
    if blocks & READERS:
        put_readers_user(w, r, page, scratch + _AUDIENCE)
    if blocks & PAGE:
        put_page_user(w, page, now, scratch + _PAGE, out)


@kernel
def put_candidate_blocks(
    w: Any, r: Any, at: Any, row: Any, h: Any, category: Any, advertiser: Any, group: Any, item_counters: Any, category_counters: Any,
    advertiser_counters: Any, now: Any, surface: Any, scratch: Any, to: Any,
) -> None:  # fmt: skip
    """Those of the candidate h at position `at`, `row` of the catalogue, as floats at an address; `*_counters`: rows of the counters."""
    where = i64(w, (N_WHERE,))
    counters, blocks, out = where[W_COUNTERS], where[D_BLOCKS], to
    if blocks & ENGAGEMENT:
        extra = f32(out, (N_KINDS,))
        extra[0] = engagement_shown(counters, item_counters)
        extra[1] = engagement_shown(counters, category_counters)
        extra[2] = engagement_shown(counters, advertiser_counters)
        out += 4 * N_KINDS
    if blocks & TREND:
        put_trend(counters, item_counters, now, scratch, out)
        out += 4 * N_TREND
    if blocks & TASTE:
        popularity = f32(where[I_C_DENSE] + 4 * where[D_D] * at, (FEATURES,))[_RATE_12H]
        put_taste(counters, item_counters, popularity, now, scratch + _TASTE, out)
        out += 4 * N_TASTE
    if blocks & FATIGUE:
        put_fatigue(w, r, h, category, advertiser, group, now, scratch + _FATIGUE, out)
        out += 4 * N_FATIGUE
    if blocks & ONLINE:
        put_online(counters, h, category, advertiser, item_counters, now, surface, scratch + _ONLINE, out)
        out += 4 * N_ONLINE
    if blocks & CONTENT:
        put_content(w, row, scratch + _CONTENT, out)
        out += 4 * N_CONTENT
    if blocks & PASSED:
        put_passed(w, row, scratch + _CONTENT, out)
        out += 4 * N_PASSED
    if blocks & (AUDIENCE | READERS):
        find_met(w, h, scratch + _AUDIENCE)
    if blocks & AUDIENCE:
        put_audience(scratch + _AUDIENCE, out)
        out += 4 * N_AUDIENCE
    if blocks & RHYTHM:
        put_rhythm(counters, category, now, out)
        out += 4 * N_RHYTHM
    if blocks & READERS:
        put_readers(scratch + _AUDIENCE, out)
        out += 4 * N_READERS
    if blocks & PAGE:
        put_page(h, category, advertiser, group, scratch + _PAGE, out)
