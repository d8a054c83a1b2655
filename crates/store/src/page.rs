//! Lists in pages.

use tunnel_model::{ApiKey, Identity, Timestamp, Tunnel};

/// A part of a list whose order is that of creation.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Page {
    /// What comes after this place; from the beginning if there is none.
    pub after: Option<Place>,
    /// How many at most; all if there is none.
    pub limit: Option<u32>,
}

impl Page {
    /// The whole list.
    pub const ALL: Self = Self { after: None, limit: None };
}

/// Where a record stands in a list. What comes and goes elsewhere moves nothing.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Place {
    /// When the record was created.
    pub created_at: Timestamp,
    /// The octets of its id.
    pub id: [u8; 16],
}

/// A record with a place in its list.
pub trait Placed {
    /// Where it stands.
    fn place(&self) -> Place;
}

impl Placed for Tunnel {
    fn place(&self) -> Place {
        Place { created_at: self.created_at, id: *self.id.as_bytes() }
    }
}

impl Placed for (Identity, Tunnel) {
    fn place(&self) -> Place {
        Place { created_at: self.0.created_at, id: *self.0.id.as_bytes() }
    }
}

impl Placed for ApiKey {
    fn place(&self) -> Place {
        Place { created_at: self.created_at, id: *self.id.as_bytes() }
    }
}
