//! What a router does about failures: sends a request again, and leaves an instance alone for a while.

use crate::time::Span;

/// Attempts and cooldown.
///
/// A request is sent again only if no token of it can have left decode: on decode's own word that its transfer failed, or was refused, and
/// for a reason that another attempt may not meet. Each attempt is the same room with a higher attempt number, so that nothing of an
/// earlier one can be taken for it, and goes to instances that were not tried yet, where there are any. A request whose decode instance is
/// gone is not sent again: nobody is left who could say how far it came.
///
/// An instance that had part in a failed transfer gets no requests for `cooldown`, then for twice as long after each failure that follows,
/// up to `longest`; a request that finishes there clears it. Nobody is left alone for ever, and when all instances of a side would be, none is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Attempts at a request, at least 1: the first.
    pub attempts: u32,
    /// Cooldown after a failure; 0: none.
    pub cooldown: Span,
    /// The longest cooldown.
    pub longest: Span,
}

impl Default for Retry {
    fn default() -> Self {
        Self { attempts: 1, cooldown: Span(0), longest: Span::s(60) }
    }
}
