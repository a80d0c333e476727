//! What goes on, put together.
