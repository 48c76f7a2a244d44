//! Shows what a program asks of VFIO devices: each request decoded, with its result and duration.
