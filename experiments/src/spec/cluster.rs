//! `cluster:` hosts, instances, NICs and the network between them.

use std::fmt;

use models::{Bandwidth, ByteSize, Layout, LayoutError, Model, PageOrder, Parallel, Picos};
use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Serialize};
use sim::fabric::CopyCosts;

use super::field;

/// Hosts, instances, NICs and the network between them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClusterSpec {
    /// Instances that compute prompts.
    pub prefill: SideSpec,
    /// Instances that generate.
    pub decode: SideSpec,
    /// GPUs of a host. No host has two instances; one with more ranks is taken for a larger host with the same share of NICs.
    #[serde(deserialize_with = "field::count")]
    pub gpus_per_host: u32,
    /// NIC ports of a host; ranks are spread over them evenly, and with rails `striped` each uses its neighbours' as well.
    #[serde(deserialize_with = "field::count")]
    pub nics_per_host: u32,
    /// NIC cost profile: a name such as `connectx-7-400g`, or the path of a YAML file.
    pub nic: String,
    /// Link speed, if not the NIC profile's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link: Option<Bandwidth>,
    /// The network between the hosts.
    pub topology: TopologySpec,
    /// What a copy within a GPU's memory costs: staging gathers and scatters.
    pub gpu_copy: CopyCosts,
    /// What KV memory is made of.
    pub memory: MemorySpec,
}

impl Default for ClusterSpec {
    fn default() -> Self {
        ClusterSpec {
            prefill: SideSpec::default(),
            decode: SideSpec::default(),
            gpus_per_host: 8,
            nics_per_host: 8,
            nic: "connectx-7-400g".to_owned(),
            link: None,
            topology: TopologySpec::default(),
            gpu_copy: CopyCosts::default(),
            memory: MemorySpec::Phantom,
        }
    }
}

/// The instances of one side, which are all alike.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SideSpec {
    /// How many instances.
    #[serde(deserialize_with = "field::count")]
    pub instances: u32,
    /// Tensor parallel size: ranks per pipeline stage.
    #[serde(deserialize_with = "field::count")]
    pub tp: u32,
    /// Pipeline stages.
    #[serde(deserialize_with = "field::count")]
    pub pp: u32,
    /// Attention data parallel groups within a stage; divides `tp`.
    #[serde(deserialize_with = "field::count")]
    pub dp: u32,
    /// Tokens of a page.
    #[serde(deserialize_with = "field::count")]
    pub page_size: u32,
    /// Order of heads and tokens within a page.
    pub page_order: PageOrder,
    /// KV memory of each GPU.
    pub memory: Capacity,
    /// Give pages out scattered, as after long use: the worst case for planner and NIC.
    pub scatter: bool,
}

impl Default for SideSpec {
    fn default() -> Self {
        SideSpec {
            instances: 1,
            tp: 1,
            pp: 1,
            dp: 1,
            page_size: 64,
            page_order: PageOrder::TokenMajor,
            memory: Capacity::Bytes(ByteSize(40 << 30)),
            scatter: false,
        }
    }
}

impl SideSpec {
    /// The parallelism of an instance.
    #[must_use]
    pub fn parallel(&self) -> Parallel {
        Parallel { tp: self.tp, pp: self.pp, dp: self.dp }
    }

    /// The KV layout of an instance.
    ///
    /// # Errors
    /// When parallelism or page size do not fit the model.
    pub fn layout(&self, model: &Model, dtype: models::DType) -> Result<Layout, LayoutError> {
        Layout::new(model, dtype, self.parallel(), self.page_size, self.page_order)
    }

    /// Pages of each rank's pools: what the memory of the rank with the largest pages holds, because a
    /// page has one index on every rank.
    #[must_use]
    pub fn pages(&self, layout: &Layout) -> u32 {
        match self.memory {
            Capacity::Pages(pages) => pages,
            Capacity::Bytes(bytes) => {
                let largest = layout.ranks().iter().map(models::RankLayout::bytes_per_page).max();
                let pages = bytes.0 / largest.unwrap_or(1).max(1);
                u32::try_from(pages).unwrap_or(u32::MAX).min(MAX_PAGES)
            }
        }
    }
}

/// The most pages a pool may have.
pub const MAX_PAGES: u32 = 1 << 28;

/// KV memory of a GPU: `"40GiB"` or `{pages: 1000}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capacity {
    /// So many bytes; whole pages of it are used.
    Bytes(ByteSize),
    /// So many pages.
    Pages(u32),
}

impl Serialize for Capacity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Capacity::Bytes(bytes) => bytes.serialize(serializer),
            Capacity::Pages(pages) => {
                let mut map = serializer.serialize_map(Some(1))?;
                map.serialize_entry("pages", pages)?;
                map.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for Capacity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct CapacityVisitor;
        impl<'de> Visitor<'de> for CapacityVisitor {
            type Value = Capacity;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes per GPU with their unit (\"40GiB\") or {pages: N}")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Capacity, E> {
                text.parse().map(Capacity::Bytes).map_err(E::custom)
            }
            fn visit_u64<E: de::Error>(self, n: u64) -> Result<Capacity, E> {
                Err(E::custom(format_args!("{n} has no unit: write \"{n}GiB\" for bytes or {{pages: {n}}}")))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Capacity, A::Error> {
                let mut pages = None;
                while let Some(key) = map.next_key::<String>()? {
                    if key != "pages" {
                        return Err(de::Error::unknown_field(&key, &["pages"]));
                    }
                    pages = Some(map.next_value::<u64>()?);
                }
                match pages {
                    Some(n) if (1..=u64::from(MAX_PAGES)).contains(&n) => Ok(Capacity::Pages(n as u32)),
                    Some(n) => {
                        Err(de::Error::custom(format_args!("pages is {n}, expected 1 to {MAX_PAGES}")))
                    }
                    None => Err(de::Error::missing_field("pages")),
                }
            }
        }
        deserializer.deserialize_any(CapacityVisitor)
    }
}

/// The network between the hosts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum TopologySpec {
    /// Every port on one switch.
    Star {
        /// One-way delay of a link, half of the delay between two hosts.
        latency: Picos,
    },
    /// Hosts on leaves, every leaf on every spine.
    LeafSpine {
        /// Leaf switches; hosts are dealt to them in order.
        #[serde(deserialize_with = "field::count")]
        leaves: u32,
        /// Spine switches. Either this or `oversubscription`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        spines: Option<u32>,
        /// Bandwidth of a leaf's hosts over that of its uplinks.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        oversubscription: Option<f64>,
        /// One-way delay of a link.
        latency: Picos,
    },
    /// No network to speak of: only the ports limit, without delay.
    Direct,
}

impl Default for TopologySpec {
    fn default() -> Self {
        TopologySpec::Star { latency: Picos(1_000_000) }
    }
}

/// What KV memory is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemorySpec {
    /// Real bytes: every element can be compared, memory is what the cluster's is.
    Bytes,
    /// Only where each byte came from: a missing, doubled or swapped slice is found, petabytes can be moved.
    Phantom,
}
