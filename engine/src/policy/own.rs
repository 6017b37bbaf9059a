//! Policies that are not of this crate.

use std::fmt;
use std::sync::Arc;

/// How an [`Own`] makes its policy: from a run's seed.
type Make<P> = dyn Fn(u64) -> Box<P> + Send + Sync;

/// A policy of somebody else: its name, and what makes one for each router or port. It is handed the run's seed; what it draws must come
/// from that alone, and it must not read a clock, or runs are not reproducible.
pub struct Own<P: ?Sized> {
    name: Arc<str>,
    make: Arc<Make<P>>,
}

impl<P: ?Sized> Own<P> {
    /// A policy called `name` in reports and errors.
    pub fn new(name: &str, make: impl Fn(u64) -> Box<P> + Send + Sync + 'static) -> Self {
        Self { name: name.into(), make: Arc::new(make) }
    }
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }
    /// One of it.
    pub fn make(&self, seed: u64) -> Box<P> {
        (self.make)(seed)
    }
}

impl<P: ?Sized> Clone for Own<P> {
    fn clone(&self) -> Self {
        Self { name: self.name.clone(), make: self.make.clone() }
    }
}

impl<P: ?Sized> fmt::Debug for Own<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Own({})", self.name)
    }
}

/// Equal if they are the same one, not another of the same name.
impl<P: ?Sized> PartialEq for Own<P> {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.make, &other.make)
    }
}
impl<P: ?Sized> Eq for Own<P> {}
