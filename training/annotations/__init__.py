"""Polygons of labelling tools to label images, and back.

========  ===================================================================
module    what it holds
========  ===================================================================
formats   the readers (LabelMe, Supervisely, COCO, BDD100K, Cityscapes), the
          writers (LabelMe, Supervisely), and which of them a file wants
base      `Annotation`, what every reader gives and every writer takes
raster    regions to pixels, pixels to outlines
classes   class names to values of label pixels, and back
convert   folders to folders; nothing that fails stops the rest
files     what is read, what may be written
overlay   labels on their images, for a look
========  ===================================================================

**Pixels.** Labelling tools count from the top-left *corner* of the image: an image covers [0, W] and the first pixel's centre
is (0.5, 0.5). Here, as everywhere in this project, (0, 0) is the *centre* of the top-left pixel and an image covers
[-0.5, W - 0.5]. Readers take half a pixel off, writers put it on; nothing is rounded on the way in. Bitmaps and run lengths
count whole pixels and are not moved. A pixel belongs to a polygon when its centre lies inside; a centre exactly on an edge
belongs to the side right of it (below a level edge), so that polygons with a common edge share no pixel and leave none out.

**Holes.** Interior rings are cut out of their own polygon. LabelMe has none: there a hole is a polygon of its own with the
label and the ``group_id`` of the one around it and the flag ``hole``, and `labelme` reads it back as an interior ring.

**Overlaps.** Objects of one class are merged; of two classes the later one in the mapping wins (see `classes`). In
Cityscapes' files the later object wins, as that data set defines it.

**What is not known.** An object of a class that the mapping does not name leaves its pixels unknown, over all others; one that
has no more than a box leaves them unknown where nothing else is labelled. An outline without area says nothing that could be
drawn, so its image gets no label.

**Places.** A label lies in the same sub-folders as its image below ``--images`` or ``images`` beside the labels, or else as its
JSON file below the folder given; so `training.datasets` finds it.

NumPy, OpenCV, shapely, orjson and PyYAML are all this needs.
"""
