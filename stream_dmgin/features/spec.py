"""The model's inputs: names, shapes, units. Both the builder (`features/build.py`) and the models are written to this page.

User side (B users; G groups newest first; L events of a group newest first; S events of the short sequence):
a function of the user's state alone, not of the time of the request, so that everything computed from it can be cached
until the user's next event, and everything of one group until that group's next event.

| tensor   | shape        | dtype   | meaning |
|----------|--------------|---------|---------|
| g_mask   | [B,G]        | bool    | the group exists |
| g_stat   | [B,G,N_STAT] | float32 | GROUP_STATS of the group |
| g_time   | [B,G]        | float32 | log2(1 + minutes from the group's last event to the user's last event) |
| e_item   | [B,G,L,3]    | int32   | bucketed hash of item, category, advertiser (0: none or unknown) |
| e_id     | [B,G,L]      | int32   | 31 bits of the item id's hash: equality with c_id means the same item (-1: no event) |
| e_cls    | [B,G,L]      | int32   | behaviour class (BEHAVIOUR_CLASSES) |
| e_time   | [B,G,L]      | int32   | age bucket relative to the group's last event (0..N_AGE-1) |
| e_dwell  | [B,G,L]      | int32   | dwell bucket (0: none; 1..N_DWELL-1: 1+log2 of seconds, clipped) |
| e_hour   | [B,G,L]      | int32   | hour of the week / 4, UTC (0..41) |
| e_mask   | [B,G,L]      | bool    | the event exists |
| s_item   | [B,S,3]      | int32   | newest clicks and post-click events over all groups, as e_item |
| s_cls, s_time, s_dwell | [B,S] | int32 | as e_*; s_time relative to the user's last event |
| s_mask   | [B,S]        | bool    | |

Request side (C candidates a user, padded; c_mask says which exist):

| tensor   | shape        | dtype   | meaning |
|----------|--------------|---------|---------|
| c_item   | [B,C,3]      | int32   | as e_item |
| c_id     | [B,C]        | int32   | as e_id |
| c_group  | [B,C]        | int32   | index into G of the candidate's group in this user's groups; G where the user has none |
| c_dense  | [B,C,D]      | float32 | candidate_features(): counters, user x candidate, price, distance, item attributes |
| c_mask   | [B,C]        | bool    | |
| g_age    | [B,G]        | float32 | log2(1 + minutes from the group's last event to the request) |
| g_size   | [B,G]        | float32 | ln(1 + events of the group for life, impressions aside) |
| u_dense  | [B,U]        | float32 | user_features(): totals, rates, recency, session, context (hour, weekday) |
| x_cat    | [B]          | int32   | bucketed hash of context["surface"] (0: none) |

Request side too, for networks that read a flat sequence (`models/peers/`); N is 0 where a model has none:

| tensor   | shape        | dtype   | meaning |
|----------|--------------|---------|---------|
| h_item   | [B,N,3]      | int32   | newest clicks and post-click events over all groups, as e_item; one of class `dwell` that tells
|          |              |         | how long the one on the same item before it lasted is no event of its own: that one has its dwell |
| h_cls, h_dwell, h_hour | [B,N] | int32 | as e_* |
| h_time   | [B,N]        | int32   | age bucket relative to the request |
| h_age    | [B,N]        | float32 | log2(1 + minutes) to the request |
| h_size   | [B,N]        | float32 | 0: each stands for itself alone |
| h_mask   | [B,N]        | bool    | |
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from stream_dmgin.errors import UsageError

BEHAVIOUR_CLASSES = ("impression", "click", "weak", "strong", "payment", "negative", "dwell", "other")
# type name -> class; a type not named here is "other"
CLASS_OF_TYPE = {
    "impression": "impression", "click": "click", "pv": "click", "view": "click",
    "share": "weak", "comment": "weak", "profile": "weak", "visit": "weak", "long_view": "weak", "like": "strong", "follow": "strong",
    "forward": "weak", "cart": "strong", "favourite": "strong", "favorite": "strong", "fav": "strong",
    "order": "payment", "buy": "payment", "payment": "payment", "purchase": "payment",
    "negative": "negative", "hate": "negative", "dislike": "negative", "dwell": "dwell", "read": "dwell",
    "history": "weak",  # a click from before impressions were logged: an interest, but no hit of a click rate
}  # fmt: skip
N_CLS = len(BEHAVIOUR_CLASSES)

RING = 64  # entries of a user's two rings in the state, at most: what is newest of a life
INTERESTS, INTEREST_EVENTS = 4096, 4  # events that a user's profile is made of, at most: in all, of one group
AUDIENCE_WIDTH = 16  # numbers of a profile, and of an item's audience

N_AGE = 32  # bucket = min(31, floor(2 * log2(1 + minutes)))
N_DWELL = 16
N_HOUR = 42

GROUP_STATS = (
    *(f"log1p_{c}" for c in BEHAVIOUR_CLASSES),  # counts for life by class
    "log1p_dwell_mean_s", "log1p_dwell_max_s", "log1p_value_mean", "ctr_smoothed", "log1p_span_h", "log1p_per_day",
)  # fmt: skip
N_STAT = len(GROUP_STATS)

COUNTER_KINDS = ("item", "category", "advertiser")
COUNTER_METRICS = ("impressions", "clicks", "dwell_ms", "orders", "engagements")
# One bucket series a level: (bucket length in ms, buckets kept, half-life in ms read from it)
COUNTER_LEVELS = ((900_000, 16, 3_600_000), (7_200_000, 24, 43_200_000), (86_400_000, 32, 604_800_000))
HALF_LIVES = ("1h", "12h", "7d", "life")

COUNTER_FEATURES = tuple(
    f"{kind}_{x}"
    for kind in COUNTER_KINDS
    for x in (
        *(f"log1p_impressions_{h}" for h in HALF_LIVES),
        *(f"ctr_logit_{h}" for h in HALF_LIVES),  # logit of the smoothed rate, minus the logit of the global rate
        "log1p_dwell_s_7d", "order_logit_7d", "engagement_logit_7d",
    )
)  # fmt: skip
PAIR_FEATURES = (
    # user x group, for life, from the group's counts
    "ug_log1p_impressions", "ug_log1p_clicks", "ug_ctr_logit", "ug_log1p_post", "ug_log1p_age_h", "ug_log1p_dwell_mean_s",
    # user x item, category, advertiser, over the user's rings (64 clicks and post-clicks, 64 impressions)
    "ui_clicks", "ui_impressions", "ui_log1p_click_age_h", "ui_log1p_impression_age_h",
    "uc_clicks", "uc_impressions", "uc_ctr_logit", "ua_clicks", "ua_impressions", "ua_ctr_logit",
    # item and place
    "log1p_price", "log1p_distance_km", "has_distance", "log1p_item_age_h", "item_known",
)  # fmt: skip
USER_FEATURES = (
    "log1p_events", "log1p_impressions", "ctr_logit", "ring_ctr_logit", "log1p_last_event_min", "log1p_last_impression_min",
    "clicks_10m", "impressions_10m", "clicks_1h", "impressions_1h", "log1p_groups", "log1p_mean_dwell_s",
    "hour_sin", "hour_cos", "hour2_sin", "hour2_cos", "dow_sin", "dow_cos", "global_ctr_logit",
)  # fmt: skip

TREND_HORIZONS = ("15m", "1h", "12h", "7d")

# Optional inputs, by the name of their block: columns of u_dense and of c_dense, behind all others. A model's spec names the
# blocks it was trained with; what no model names is not computed.
USER_BLOCKS = {
    "session": (  # over visible impressions: the user's newest 5, 20, 50, and the session so far
        *(f"last{n}_ctr_logit" for n in (5, 20, 50)), *(f"last{n}_log1p_dwell_s" for n in (5, 20, 50)),
        "session_log1p_impressions", "session_log1p_clicks", "session_log1p_min", "log1p_impressions_since_click",
    ),
    "surface": (  # user x the request's surface, over the rings
        "us_log1p_impressions", "us_log1p_clicks", "us_ctr_logit", "us_last10_ctr_logit", "us_log1p_last_min",
    ),
    "engagement": (),
    "trend": (*(f"global_ctr_logit_{h}" for h in TREND_HORIZONS[:3]), "global_log1p_impressions_1h"),
    "taste": ("shown_residual", "clicked_log1p_item_age_h", "clicked_item_ctr_logit_12h", "hour_residual"),
    "fatigue": (
        "list1_shown", "list2_shown", "list_mean_shown", "lists", "list1_clicks", "list2_clicks", "lists_since_click",
        "log1p_list1_min", "log1p_list2_min",
    ),
    "online": tuple(f"online_residual_{x}" for x in ("1h", "24h", "ring", "surface")),
    "content": ("content_log1p_items", "content_alike"),  # the items of the ring of events that have an embedding
    "passed": ("passed_log1p_items",),  # those of the ring of impressions that are none of the former
    "audience": ("audience_log1p_events",),  # what the user's profile was made of
    "rhythm": (),
    "readers": (),
    "page": ("page_known", "page_log1p_item_age_h"),  # the item on whose page the candidates would stand
}  # fmt: skip
CANDIDATE_BLOCKS = {
    "session": (), "surface": (),
    "engagement": tuple(f"{kind}_engagement_shown_logit_7d" for kind in COUNTER_KINDS),  # engagements in impressions
    "trend": (  # short horizons and their changes, from the item's counters
        "item_log1p_impressions_15m", "item_ctr_logit_15m", *(f"item_share_{h}" for h in TREND_HORIZONS),
        *(f"item_click_share_{h}" for h in TREND_HORIZONS), "item_ctr_trend_15m_1h", "item_ctr_trend_1h_12h", "item_ctr_trend_12h_7d",
        "item_pace_1h_12h", "item_pace_change", "item_log1p_per_h", "item_log1p_last_click_min", "item_log1p_last_shown_min",
    ),
    "taste": (  # what the user clicks by age and by popularity of the item, over the rings
        "uage_residual", "uage_shown", "upop_residual", "upop_shown", "uage_difference", "upop_difference",
    ),
    "fatigue": (  # impressions in vain, over the rings
        "ui_shown_10m", "ui_shown_1h", "ui_shown_24h", "uc_shown_1h", "ua_shown_1h", "ug_shown_1h",
        "ui_shown_since_click", "uc_shown_since_click", "ua_shown_since_click", "ug_shown_since_click",
        "ui_in_last_list", "ui_lists", "ug_log1p_last_shown_min", "ui_log1p_dwell_s", "ug_log1p_dwell_s_shown",
    ),
    "online": (  # the model that learns from the stream, and clicks compared with those it expected
        "online_linear", "online_factored", "online_logit", *(f"online_item_residual_{h}" for h in HALF_LIVES[:3]),
        "online_item_surface_residual_12h", *(f"online_{x}_residual" for x in ("uage", "ui", "uc", "ua")),
    ),
    "content": (  # likeness of the candidate's embedding to theirs
        "content_mean", "content_cosine", "content_max", "content_top3", "content_recent", "content_attention",
    ),
    "passed": tuple(f"passed_{x}" for x in ("mean", "cosine", "max", "top3", "recent", "attention")),
    "audience": ("audience_clicked", "audience_left"),  # likeness of the user to those who clicked the item, to those who left it
    "rhythm": ("rhythm_category", "rhythm_logit"),  # how the category is clicked at this time of the week
    "readers": (  # `audience` direction by direction; likeness to the audiences of what the user read last, and of the page
        *(f"readers_clicked_{k}" for k in range(AUDIENCE_WIDTH)), *(f"readers_left_{k}" for k in range(AUDIENCE_WIDTH)),
        "readers_last", "readers_last5", "readers_last20", "readers_nearest", "readers_left20", "readers_page", "readers_page_left",
    ),
    "page": ("page_self", "page_group", "page_category", "page_advertiser"),  # whether it is the page's item, of its group, ...
}  # fmt: skip
BLOCKS = tuple(USER_BLOCKS)
MEETING = frozenset({"audience", "readers"})  # blocks that read who met an item


@dataclass(frozen=True)
class InputSpec:
    """Sizes of the inputs; part of a model's config. `item_numbers`: numeric `attrs` of items, appended to c_dense as log1p;
    `embedding`: how many numbers the items' embeddings have, for the blocks `content`, `passed`, `audience` and `readers`."""

    groups: int = 64  # G, at most 128
    events: int = 16  # L, at most 32
    short: int = 32  # S, at most 64
    item_buckets: int = 16384
    category_buckets: int = 1024
    advertiser_buckets: int = 4096
    surface_buckets: int = 64
    item_numbers: tuple[str, ...] = ()
    blocks: tuple[str, ...] = ()  # optional inputs, of BLOCKS and in their order
    embedding: int = 64
    flat: int = 0  # N, at most RING; 0: no member of the model reads a flat sequence

    def __post_init__(self) -> None:
        if self.blocks != tuple(b for b in BLOCKS if b in self.blocks):
            raise ValueError(f"blocks of inputs {self.blocks}: name some of {BLOCKS}, in this order")
        if not 1 <= self.embedding <= 4096:
            raise ValueError(f"embedding = {self.embedding}: embeddings of 1 to 4096 numbers can be read")

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> InputSpec:
        """The spec as JSON gave it back (lists for tuples)."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
        return cls(**values)

    @property
    def reads_embeddings(self) -> int:
        """How many numbers of the items' embeddings the inputs need; 0: none are read."""
        return self.embedding if {"content", "passed", *MEETING} & {*self.blocks} else 0

    @property
    def interests(self) -> int:
        """How many events must be read of a user's state for the profile; 0: it is not read."""
        return INTERESTS if MEETING & {*self.blocks} else 0

    @property
    def candidate_features(self) -> tuple[str, ...]:
        """Names of the columns of c_dense."""
        numbers = (f"log1p_{n}" for n in self.item_numbers)
        return (*COUNTER_FEATURES, *PAIR_FEATURES, *numbers, *(n for b in self.blocks for n in CANDIDATE_BLOCKS[b]))

    @property
    def user_features(self) -> tuple[str, ...]:
        """Names of the columns of u_dense."""
        return (*USER_FEATURES, *(n for b in self.blocks for n in USER_BLOCKS[b]))


@dataclass(frozen=True)
class Reads:
    """What models need of a process beyond states and counters. `online`: what is learnt from the counters topic, behind the inputs of that
    name, `audience` and `readers`; `embedding`: how many numbers of the items' embeddings, 0: none; `audience`: that events are published
    with their users' profiles; `rhythm`: at least that part of what is learnt that is behind the inputs of that name."""

    online: bool = False
    embedding: int = 0
    audience: bool = False
    rhythm: bool = False

    @classmethod
    def of(cls, specs: Iterable[InputSpec]) -> Reads:
        """For models of these specs. UsageError where two of them read embeddings of different widths."""
        some = list(specs)
        widths = {s.reads_embeddings for s in some} - {0}
        if len(widths) > 1:
            raise UsageError(
                f"these models read embeddings of {' and '.join(map(str, sorted(widths)))} numbers: an item has one embedding. Take them "
                "one by one, or train them for the same"
            )
        audience = any(MEETING & {*s.blocks} for s in some)
        online, rhythm = (any(b in s.blocks for s in some) for b in ("online", "rhythm"))
        return cls(audience or online, max(widths, default=0), audience, rhythm)


NOTHING = Reads()
