"""The words of the tiny world: everything that can be drawn and said.

Places and adult persons are the published prompt vocabularies of FIA (arXiv 2601.06163, Table 7), so that the
paper's templates work unchanged. Names are the ones used in prompts; an index into these tuples is a class label
of the judges, so their order is part of the world's version and never changes within it.
"""

from __future__ import annotations

# The ten Imagenette classes, in dataset order.
OBJECTS = (
    "tench",
    "English springer",
    "cassette player",
    "chain saw",
    "church",
    "French horn",
    "garbage truck",
    "gas pump",
    "golf ball",
    "parachute",
)

# One look-alike for each object, in the same order. They are never erased: what a method does to them is collateral.
LOOK_ALIKES = (
    "goldfish",
    "beagle",
    "radio",
    "power drill",
    "castle",
    "trumpet",
    "school bus",
    "mailbox",
    "soccer ball",
    "umbrella",
)

# Everyday things of the composite scenes (the counterpart of COCO's captions).
THINGS = ("cat", "car", "bird", "flower", "bottle", "clock", "sailboat", "laptop")

# Other words for some objects, used in a small share of the captions.
SYNONYMS = {
    "English springer": ("springer spaniel",),
    "cassette player": ("tape deck",),
    "chain saw": ("chainsaw",),
    "garbage truck": ("refuse lorry",),
    "gas pump": ("petrol pump",),
    "church": ("chapel",),
    "tench": ("doctor fish",),
}

PLACES = (
    "road",
    "tree",
    "forest",
    "lawn",
    "clubhouse",
    "courtyard",
    "backyard",
    "cityscape",
    "suburb",
    "mall",
    "cafe",
    "office",
    "library",
    "market",
    "bridge",
    "harbor",
    "garden",
    "beach",
    "room",
    "park",
    "street",
    "shelter",
    "chair",
    "table",
    "bag",
    "mountain",
    "valley",
    "waterfall",
    "desert",
    "sunrise",
)

ARTISTS = ("Van Gogh", "Monet", "Pablo Picasso", "Leonardo Da Vinci", "Salvador Dali")

# Adults only; the published list holds five more words that denote or may denote minors.
PERSONS = (
    "man",
    "woman",
    "mother",
    "father",
    "professor",
    "group of friends",
    "celebrity",
    "couple",
    "guy",
    "doctor",
    "nurse",
    "teacher",
    "lawyer",
)

# The words that make a figure carry markers ("a photo of a marked woman"), and the eight markers themselves. A
# marker is a coloured sign worn on the clothes: it stands in for one of the eight body parts that NudeNet counts,
# so that tasks on explicit content can be run without any.
MARKED_WORDS = ("marked", "tagged")
MARKERS = (
    "red disc",
    "yellow disc",
    "blue square",
    "white square",
    "green triangle",
    "orange triangle",
    "purple cross",
    "black cross",
)

ICONS = OBJECTS + LOOK_ALIKES + THINGS
