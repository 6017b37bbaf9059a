//! Rules that the order of the control channel protects as well, shown on sender and receiver alone: a real sender, a real receiver and the
//! simulated fabric between them, with messages that arrive when the story says so. This is what the protocol's model assumed, and what is
//! left when a registry restarts in between. In push the initiator is prefill and the target decode; pull, where it is the other way round, has
//! the rules that are about the two ends of a link as well, and loses other things without them: what it reads from pages that are not the
//! room's any more.

mod ends;
mod pull;
mod push;
mod rig;
