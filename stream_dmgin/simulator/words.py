"""The city's vocabulary: the category tree, with the daily rhythm of each middle category, and the words of names and texts."""

from __future__ import annotations

# top -> middle -> (rhythm, leaves). Rhythms are drawn in `city.RHYTHMS`.
TREE: dict[str, dict[str, tuple[str, tuple[str, ...]]]] = {
    "food": {
        "noodles": ("meal", ("ramen", "pho", "hand-pulled")),
        "grill": ("meal", ("barbecue", "burger", "kebab")),
        "rice": ("meal", ("curry", "donburi", "paella")),
        "bakery": ("morning", ("bread", "pastry", "bagel")),
    },
    "drinks": {
        "coffee": ("morning", ("espresso", "filter", "cold-brew")),
        "tea": ("afternoon", ("bubble-tea", "matcha", "herbal")),
        "bars": ("night", ("cocktail", "craft-beer", "wine")),
    },
    "shopping": {
        "clothes": ("shop", ("streetwear", "suits", "vintage")),
        "shoes": ("shop", ("sneakers", "boots", "sandals")),
        "electronics": ("shop", ("phones", "audio", "gaming")),
        "grocery": ("evening", ("organic", "discount", "asian-market")),
    },
    "leisure": {
        "cinema": ("night", ("arthouse", "multiplex", "open-air")),
        "sports": ("evening", ("climbing", "gym", "swimming")),
        "games": ("night", ("arcade", "board-games", "escape-room")),
        "music": ("night", ("jazz", "karaoke", "concert-hall")),
    },
    "beauty": {
        "hair": ("shop", ("barber", "colourist", "braids")),
        "spa": ("afternoon", ("massage", "sauna", "nails")),
    },
    "services": {
        "repair": ("office", ("bicycle", "phone-repair", "tailor")),
        "health": ("office", ("dentist", "pharmacy", "physio")),
        "learning": ("evening", ("language", "cooking-class", "music-lessons")),
    },
    "travel": {
        "hotels": ("night", ("boutique", "hostel", "business")),
        "tours": ("afternoon", ("walking", "boat", "museum")),
    },
    "family": {
        "kids": ("afternoon", ("playground", "toys", "petting-zoo")),
        "pets": ("shop", ("grooming", "pet-food", "vet")),
    },
}

STYLES = (
    "spicy", "vegan", "late-night", "family", "premium", "student", "rooftop", "riverside", "retro", "express",
    "hand-made", "seasonal", "Nordic", "Sicilian", "coastal", "garden", "minimal", "royal", "underground", "sunny",
)  # fmt: skip
FIRST = (
    "Golden", "Blue", "Little", "Grand", "Old", "Silver", "Lucky", "Happy", "Red", "Green", "Wild", "Quiet", "Bright",
    "Iron", "Paper", "Velvet", "Amber", "Stone", "Moon", "River",
)  # fmt: skip
SECOND = (
    "Lantern", "Crane", "Corner", "House", "Fox", "Bridge", "Table", "Garden", "Harbour", "Star", "Tiger", "Willow", "Bell",
    "Anchor", "Pepper", "Maple", "Cloud", "Compass", "Barrel", "Sparrow",
)  # fmt: skip
DISTRICTS = (
    "Northgate", "Mill Hill", "Old Harbour", "Parkside", "Eastfield", "University", "Market", "Riverside", "Station", "Foundry",
    "Westbrook", "Cathedral", "Centre", "Exchange", "Docks", "Greenbank", "Theatre", "Southgate", "Canal", "Airport Road",
    "Hillcrest", "Garden City", "Lakeside", "Stadium", "Fairview",
)  # fmt: skip
SURFACES = ("feed", "map", "search")
