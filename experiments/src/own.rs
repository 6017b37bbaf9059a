//! Policies of your own: registered by name in a program that links this crate, and named in experiments as `{own: NAME}`.
//!
//! ```no_run
//! use engine::policy::{Ask, Choice, Routing};
//!
//! /// Everything to the first two.
//! struct First;
//!
//! impl Routing for First {
//!     fn choose(&mut self, _ask: &Ask<'_>) -> Choice {
//!         Choice { prefill: 0, decode: 0 }
//!     }
//! }
//!
//! fn main() -> std::process::ExitCode {
//!     experiments::own::routing("first", |_seed| Box::new(First));
//!     // The whole command: `run x.yaml --set 'policy.routing={own: first}'`, on either fabric.
//!     experiments::cli::main()
//! }
//! ```
//!
//! Names are for the whole process, because an experiment is checked where it is read. With `--fabric verbs` the processes of a run are this
//! same program, so that they know the policy too.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use engine::policy::{Order, OrderPolicy, Own, Routing, RoutingPolicy};

/// Registered policies of one kind.
type Table<P> = Mutex<BTreeMap<String, Own<P>>>;

static ROUTING: Table<dyn Routing> = Mutex::new(BTreeMap::new());
static ORDER: Table<dyn Order> = Mutex::new(BTreeMap::new());

/// A table is whole after every change, so what a panic elsewhere left is as good.
fn lock<P: ?Sized>(table: &'static Table<P>) -> MutexGuard<'static, BTreeMap<String, Own<P>>> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

fn find<P: ?Sized>(table: &'static Table<P>, name: &str, call: &str) -> Result<Own<P>, String> {
    let table = lock(table);
    table.get(name).cloned().ok_or_else(|| {
        let names: Vec<&str> = table.keys().map(String::as_str).collect();
        let there =
            if names.is_empty() { "none is".to_owned() } else { format!("there is {}", names.join(", ")) };
        format!("no policy `{name}` was registered in this program ({there}); see experiments::own::{call}")
    })
}

/// Registers a routing policy, in the place of one of the same name. `make` is called with the seed of each run.
pub fn routing(name: &str, make: impl Fn(u64) -> Box<dyn Routing> + Send + Sync + 'static) {
    lock(&ROUTING).insert(name.to_owned(), Own::new(name, make));
}

/// Registers an order policy, in the place of one of the same name. `make` is called for each port, with 0: an order draws nothing.
pub fn order(name: &str, make: impl Fn(u64) -> Box<dyn Order> + Send + Sync + 'static) {
    lock(&ORDER).insert(name.to_owned(), Own::new(name, make));
}

/// The order policy of that name; the error says which there are.
pub(crate) fn find_order(name: &str) -> Result<OrderPolicy, String> {
    find(&ORDER, name, "order").map(OrderPolicy::Own)
}

/// The routing policy of that name; the error says which there are.
pub(crate) fn find_routing(name: &str) -> Result<RoutingPolicy, String> {
    find(&ROUTING, name, "routing").map(RoutingPolicy::Own)
}
