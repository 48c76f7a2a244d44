//! The server, as a client sees it over a real socket.

mod answers;
mod clients;
mod descriptors;
mod event_loop;
mod extension;
mod hand;
mod held_answers;
mod hostile;
mod memory;
mod messages;
mod migration;
mod source;
mod state_channel;
mod support;
mod takeover;
mod takeover_by_hand;
mod takeover_faults;
mod takeover_limits;
mod takeover_permission;
mod takeover_precopy;
mod takeover_races;
mod takeover_requests;
mod text;
