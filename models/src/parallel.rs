//! How one instance is spread over ranks: tensor, pipeline and attention data parallelism.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::model::{Attention, Model};

/// Most ranks of one instance.
pub const MAX_WORLD: u32 = 4_096;

/// Parallelism of one instance of `tp * pp` ranks.
///
/// World ranks count pipeline stages first: `stage * tp + tp_rank`. With attention data parallelism
/// the `tp` ranks of a stage form `dp` groups of `tp / dp` neighbours, as in SGLang; a request's KV
/// lives on the same group of every stage and nowhere else. *Group ranks* number the ranks of one
/// group: `stage * attn_tp + rank in group`. Without DP they are the world ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Parallel {
    /// Tensor parallel size: ranks per stage.
    pub tp: u32,
    /// Pipeline stages.
    pub pp: u32,
    /// Attention data parallel groups within a stage; divides `tp`.
    pub dp: u32,
}

impl Default for Parallel {
    fn default() -> Self {
        Self { tp: 1, pp: 1, dp: 1 }
    }
}

/// Why a parallelism is impossible, alone or for a model.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ParallelError {
    /// A size of zero.
    #[error("{key} is 0, must be at least 1")]
    Zero {
        /// `tp`, `pp` or `dp`.
        key: &'static str,
    },
    /// More ranks than any instance has.
    #[error("tp {tp} x pp {pp} is {ranks} ranks, at most {MAX_WORLD} are supported")]
    TooManyRanks {
        /// Tensor parallel size.
        tp: u32,
        /// Pipeline stages.
        pp: u32,
        /// Their product.
        ranks: u64,
    },
    /// DP groups of unequal size.
    #[error("dp {dp} does not divide tp {tp}: use one of {choices}")]
    Dp {
        /// DP groups.
        dp: u32,
        /// Tensor parallel size.
        tp: u32,
        /// The divisors of `tp`.
        choices: String,
    },
    /// Heads cannot be shared out.
    #[error(
        "attention tp {attn_tp} (tp {tp} / dp {dp}) does not fit model `{model}`: it must divide its {q_heads} \
         query heads{kv}; use one of {choices}"
    )]
    Heads {
        /// Attention TP.
        attn_tp: u32,
        /// Tensor parallel size.
        tp: u32,
        /// DP groups.
        dp: u32,
        /// Model name.
        model: String,
        /// Query heads.
        q_heads: u32,
        /// The condition on KV heads, for GQA.
        kv: String,
        /// Attention TP sizes that fit.
        choices: String,
    },
    /// A stage without a layer.
    #[error("pp {pp} is more than the {layers} layers of model `{model}`: use 1 to {layers}")]
    Stages {
        /// Pipeline stages.
        pp: u32,
        /// Layers.
        layers: u32,
        /// Model name.
        model: String,
    },
}

impl Parallel {
    /// Tensor parallelism only.
    #[must_use]
    pub const fn tp(tp: u32) -> Self {
        Self { tp, pp: 1, dp: 1 }
    }

    /// Checks the sizes alone.
    ///
    /// # Errors
    /// On zero, on `dp` that does not divide `tp`, on too many ranks.
    pub fn validate(self) -> Result<(), ParallelError> {
        for (key, value) in [("tp", self.tp), ("pp", self.pp), ("dp", self.dp)] {
            if value == 0 {
                return Err(ParallelError::Zero { key });
            }
        }
        let ranks = u64::from(self.tp) * u64::from(self.pp);
        if ranks > u64::from(MAX_WORLD) {
            return Err(ParallelError::TooManyRanks { tp: self.tp, pp: self.pp, ranks });
        }
        if !self.tp.is_multiple_of(self.dp) {
            return Err(ParallelError::Dp {
                dp: self.dp,
                tp: self.tp,
                choices: list((1..=self.tp).filter(|d| self.tp.is_multiple_of(*d))),
            });
        }
        Ok(())
    }

    /// Checks the sizes against a model: attention TP divides the query heads, and either divides
    /// the KV heads or is a multiple of them (replication); every stage has a layer.
    ///
    /// # Errors
    /// Names the key, its value and the values that would fit.
    pub fn check(self, model: &Model) -> Result<(), ParallelError> {
        self.validate()?;
        if self.pp > model.layers {
            return Err(ParallelError::Stages {
                pp: self.pp,
                layers: model.layers,
                model: model.name.clone(),
            });
        }
        let fits = |attn_tp: u32| {
            let kv = match model.attention {
                Attention::Gqa { kv_heads, .. } => {
                    kv_heads.is_multiple_of(attn_tp) || attn_tp.is_multiple_of(kv_heads)
                }
                Attention::Mla { .. } => true,
            };
            kv && model.q_heads.is_multiple_of(attn_tp)
        };
        if !fits(self.attn_tp()) {
            let kv = match model.attention {
                Attention::Gqa { kv_heads, .. } => {
                    format!(" and divide, or be a multiple of, its {kv_heads} KV heads")
                }
                Attention::Mla { .. } => String::new(),
            };
            return Err(ParallelError::Heads {
                attn_tp: self.attn_tp(),
                tp: self.tp,
                dp: self.dp,
                model: model.name.clone(),
                q_heads: model.q_heads,
                kv,
                choices: list((1..=model.q_heads.min(MAX_WORLD)).filter(|a| fits(*a))),
            });
        }
        Ok(())
    }

    /// Ranks of the instance.
    #[must_use]
    pub const fn world(self) -> u32 {
        self.tp * self.pp
    }

    /// Ranks of one stage that share a request's heads: `tp / dp`.
    #[must_use]
    pub const fn attn_tp(self) -> u32 {
        self.tp / self.dp
    }

    /// Ranks that hold a request's KV: one DP group of every stage.
    #[must_use]
    pub const fn group_size(self) -> u32 {
        self.attn_tp() * self.pp
    }

    /// The world rank of a group rank of DP group `dp_group`.
    #[must_use]
    pub const fn world_rank(self, dp_group: u32, group_rank: u32) -> u32 {
        let attn_tp = self.attn_tp();
        (group_rank / attn_tp) * self.tp + dp_group * attn_tp + group_rank % attn_tp
    }

    /// (DP group, group rank) of a world rank.
    #[must_use]
    pub const fn group_rank(self, world_rank: u32) -> (u32, u32) {
        let (stage, tp_rank, attn_tp) = (world_rank / self.tp, world_rank % self.tp, self.attn_tp());
        (tp_rank / attn_tp, stage * attn_tp + tp_rank % attn_tp)
    }

    /// The layers of a stage: as even as possible, the first `layers % pp` stages hold one more.
    #[must_use]
    pub const fn stage_layers(self, layers: u32, stage: u32) -> Range<u32> {
        let (each, more) = (layers / self.pp, layers % self.pp);
        let extra = if stage < more { stage } else { more };
        let start = stage * each + extra;
        let len = each + (stage < more) as u32;
        start..start + len
    }

    /// Into how many distinct slices the KV of a layer is cut over a group: `min(attn_tp, kv_heads)`
    /// for GQA, 1 for MLA. Each slice is held by [`Parallel::replicas`] neighbouring ranks.
    #[must_use]
    pub fn slices(self, model: &Model) -> u32 {
        match model.attention {
            Attention::Gqa { kv_heads, .. } => self.attn_tp().min(kv_heads),
            Attention::Mla { .. } => 1,
        }
    }

    /// How many ranks of a stage's group hold each slice.
    #[must_use]
    pub fn replicas(self, model: &Model) -> u32 {
        self.attn_tp() / self.slices(model)
    }
}

/// "1, 2, 4"
fn list(values: impl Iterator<Item = u32>) -> String {
    values.map(|v| v.to_string()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::presets;
    use proptest::prelude::*;

    #[test]
    fn errors_name_the_choices() {
        let qwen = presets::lookup("qwen2.5-7b").unwrap();
        assert_eq!(Parallel::tp(4).check(&qwen), Ok(()));
        assert_eq!(Parallel::tp(28).check(&qwen), Ok(()));
        for tp in [3, 7, 8] {
            let error = Parallel::tp(tp).check(&qwen).unwrap_err().to_string();
            assert!(error.contains("28 query heads") && error.contains("4 KV heads"), "{error}");
            assert!(error.ends_with("use one of 1, 2, 4, 28"), "{error}");
        }
        let error = Parallel { tp: 8, pp: 1, dp: 3 }.validate().unwrap_err();
        assert_eq!(error.to_string(), "dp 3 does not divide tp 8: use one of 1, 2, 4, 8");
        let error = Parallel { tp: 1, pp: 29, dp: 1 }.check(&qwen).unwrap_err();
        assert!(error.to_string().contains("use 1 to 28"), "{error}");
        assert!(Parallel { tp: u32::MAX, pp: u32::MAX, dp: 1 }.validate().is_err());
        assert_eq!(Parallel { tp: 0, pp: 1, dp: 1 }.validate(), Err(ParallelError::Zero { key: "tp" }));
        let seven = Parallel { tp: 8, pp: 1, dp: 8 };
        assert_eq!(seven.check(&qwen), Ok(()), "attention TP is 1");
    }

    proptest! {
        #[test]
        fn stages_cover_the_layers(layers in 1_u32..200, pp in 1_u32..20) {
            prop_assume!(pp <= layers);
            let parallel = Parallel { tp: 1, pp, dp: 1 };
            let mut next = 0;
            for stage in 0..pp {
                let range = parallel.stage_layers(layers, stage);
                prop_assert_eq!(range.start, next);
                prop_assert!(range.len() as u32 == layers / pp || range.len() as u32 == layers / pp + 1);
                next = range.end;
            }
            prop_assert_eq!(next, layers);
        }

        #[test]
        fn group_ranks_are_world_ranks(attn in 1_u32..9, dp in 1_u32..5, pp in 1_u32..5) {
            let parallel = Parallel { tp: attn * dp, pp, dp };
            let mut seen = vec![false; parallel.world() as usize];
            for group in 0..dp {
                for rank in 0..parallel.group_size() {
                    let world = parallel.world_rank(group, rank);
                    prop_assert_eq!(parallel.group_rank(world), (group, rank));
                    prop_assert!(!std::mem::replace(&mut seen[world as usize], true));
                }
            }
            prop_assert!(seen.into_iter().all(|s| s));
        }
    }
}
