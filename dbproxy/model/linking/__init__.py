"""Where a request belongs: conversation, thread, branch, parent. Pure functions over what was seen and a lookup."""
