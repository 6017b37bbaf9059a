//! Which node a socket belongs to.

use crate::id::NodeId;

/// Longest name of a node, in bytes.
pub const MAX_NAME: usize = 64;
/// Nodes of a cluster, at most: numbers are below this.
pub const MAX_NODES: u32 = 1 << 16;

/// `kv1` and a byte that is neither zero (ZeroMQ's own) nor text.
const MAGIC: [u8; 4] = *b"kv1\x01";
const HEAD: usize = MAGIC.len() + 4;

/// A node's number in the cluster and its name: the identity of its socket (`ZMQ_ROUTING_ID`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its address for frames.
    pub node: NodeId,
    /// What people call it.
    pub name: String,
}

/// Why bytes or a name are no identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Not of this protocol, or another version of it.
    #[error("not the identity of a kvrail node")]
    Foreign,
    /// The registry's own number, or one that is too large.
    #[error("node number {0} is not valid, expected 1 to {max}", max = MAX_NODES - 1)]
    Number(u32),
    /// Not a name.
    #[error("`{0}` is no name of a node: expected 1 to {MAX_NAME} letters, digits, `-`, `_` or `.`")]
    Name(String),
}

impl Identity {
    /// Checks number and name.
    pub fn new(node: NodeId, name: &str) -> Result<Self, IdentityError> {
        check(node, name.as_bytes())?;
        Ok(Self { node, name: name.to_owned() })
    }

    /// As ZeroMQ carries it.
    pub fn bytes(&self) -> Vec<u8> {
        [&MAGIC[..], &self.node.0.to_be_bytes(), self.name.as_bytes()].concat()
    }

    /// From what ZeroMQ carried.
    pub fn parse(bytes: &[u8]) -> Result<Self, IdentityError> {
        let node = number(bytes).ok_or(IdentityError::Foreign)?;
        let name = check(node, &bytes[HEAD..])?;
        Ok(Self { node, name: name.to_owned() })
    }
}

/// The number, whatever the rest.
#[inline]
pub(super) fn number(bytes: &[u8]) -> Option<NodeId> {
    let (magic, rest) = bytes.split_first_chunk::<4>()?;
    let (number, _) = rest.split_first_chunk::<4>()?;
    (*magic == MAGIC).then(|| NodeId(u32::from_be_bytes(*number)))
}

fn check(node: NodeId, name: &[u8]) -> Result<&str, IdentityError> {
    if node.0 == 0 || node.0 >= MAX_NODES {
        return Err(IdentityError::Number(node.0));
    }
    let fine = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
    match std::str::from_utf8(name) {
        Ok(text) if (1..=MAX_NAME).contains(&name.len()) && name.iter().all(fine) => Ok(text),
        _ => Err(IdentityError::Name(String::from_utf8_lossy(name).into_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_identity_comes_back() {
        let one = Identity::new(NodeId(7), "prefill-0").expect("valid");
        assert_eq!(Identity::parse(&one.bytes()), Ok(one));
    }

    #[test]
    fn wrong_numbers_and_names_are_refused() {
        assert_eq!(Identity::new(NodeId(0), "x"), Err(IdentityError::Number(0)));
        assert_eq!(Identity::new(NodeId(MAX_NODES), "x"), Err(IdentityError::Number(MAX_NODES)));
        for name in ["", "a b", "\u{e9}", &"x".repeat(MAX_NAME + 1)] {
            assert_eq!(Identity::new(NodeId(1), name), Err(IdentityError::Name(name.to_owned())));
        }
        assert_eq!(Identity::parse(b""), Err(IdentityError::Foreign));
        assert_eq!(Identity::parse(b"kv1\x02\0\0\0\x01a"), Err(IdentityError::Foreign));
        assert!(matches!(Identity::parse(b"kv1\x01\0\0\0\x01\xff\xff"), Err(IdentityError::Name(_))));
    }

    proptest! {
        #[test]
        fn only_what_comes_back_is_an_identity(bytes in prop::collection::vec(any::<u8>(), 0..80), magic: bool) {
            let bytes = if magic { [&MAGIC[..], &bytes].concat() } else { bytes };
            if let Ok(one) = Identity::parse(&bytes) {
                prop_assert_eq!(one.bytes(), bytes);
            }
        }
    }
}
