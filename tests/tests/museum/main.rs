//! The museum: mistakes that other systems made when they moved KV caches, from real reports. Each test puts one of them back and shows
//! which law it breaks, and that without it all laws hold. Most are switches of [`engine::transfer::Rules`], so that they can be named;
//! those about arithmetic are put back where the arithmetic is; what types or decoders make impossible is tried on the real decoders.
//!
//! | case | peers' mistake | here |
//! |---|---|---|
//! | 1 | pages reused while writes are in flight after an abort | `fence_before_free`, `initiator_waits` |
//! | 2 | a failed completion is logged, the request never fails | `failures_count` |
//! | 3 | decode counts toward a number that it never reaches | `sources_of_relation` |
//! | 4 | the last chunk's aux row is taken for the KV | `seals` |
//! | 5 | all pipeline stages write the same aux row | `one_aux_writer` |
//! | 6 | wrong heads when TP is larger than the number of KV heads | `heads_by_replica` |
//! | 7 | an auxiliary buffer (index-K) forgotten | `every_component` |
//! | 8 | a second chunk re-posts the first one's writes | `chunks_once` |
//! | 9 | more work requests than the send queue holds | `send_queue_bound` |
//! | 10 | one failed send blacklists a peer for ever | `links_recover` |
//! | 11 | a restarted prefill needs the decode restarted too | `facts_of_instance` |
//! | 12 | a request that is queued again inherits the old room's Success | `seals_name_rooms` |
//! | 13 | a duplicate room id crashes the scheduler | `assigns_once` |
//! | 14 | room ids over 63 bits | decoders and registry |
//! | 15 | no failure message: the peer waits for its timer | `failures_told` |
//! | 16 | both sides abort at once | `crossed_aborts_wait` |
//! | 17 | ranks disagree on the outcome | `all_ranks` |
//! | 18 | a staging ring that overcommits | `staged_in_parts` |
//! | 19 | a rank registered twice makes the group look complete | `ranks_once` |
//! | 20 | leaks after failure | `failed_rooms_released` |
//! | 21 | pickle on the metadata socket | decoders |
//! | 22 | reading the opcode of a failed completion | `status_first` |
//! | 23 | writing on one NIC with another NIC's key | `key_of_port` |
//! | 24 | RNR timer code 0 is 655 ms, not none | the timer code |
//! | 25 | bandwidth divided when a transfer starts and never again | the network's law |
//! | 26 | a bandwidth read in the wrong unit | typed units |

mod completion;
mod layout;
mod metadata;
mod network;
mod pages;
mod peers;
mod queues;
