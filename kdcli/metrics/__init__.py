"""Pure functions that measure: classification, segmentation, agreement with the teacher, efficiency."""
