"""Pure functions that measure: classification, agreement with the teacher, efficiency."""
