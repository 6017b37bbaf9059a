//! Where bytes lie: cases 6 and 7.

use kvrail_tests::stories::{one_request, shows_fault_free};
use models::{DType, IndexK, presets};
use sim::kit::Kit;

/// With more ranks than KV heads each head has replicas on neighbouring ranks. The sender took the rank's number modulo the number of heads
/// for the head: right for as long as there is one rank a head, and other people's heads beyond. Law: every element arrives where the decode
/// layout says, equal to the source.
#[test]
fn case_06_wrong_heads_when_tp_is_larger_than_the_number_of_heads() {
    let tp = |p, d| Kit::pair().prefill(move |i| i.tp(p)).decode(move |i| i.tp(d));
    for base in [tp(16, 2), tp(16, 8), tp(16, 16)] {
        shows_fault_free(one_request, base.clone(), "heads_by_replica", "wrong content");
        shows_fault_free(one_request, base.clone().bytes(), "heads_by_replica", "wrong content");
        shows_fault_free(one_request, base.pull(), "heads_by_replica", "wrong content");
    }
    // Up to one rank a head the mistake is none: this is why it was not found.
    let base = tp(8, 2).rules(|r| r.heads_by_replica = false);
    one_request(base).assert_fault_free();
}

/// A new model brought a second buffer beside its latents, with the keys of its indexer. The transfer knew of one buffer; decode's indexer
/// looked into whatever was there. Nothing failed: answers became worse. Law: every element arrives where the decode layout says.
#[test]
fn case_07_index_keys_are_forgotten() {
    let mut model = presets::lookup("tiny-mla").unwrap();
    model.index_k = Some(IndexK { head_dim: 128 });
    let base = Kit::pair().model_of(model).dtype(DType::Fp8);
    let repaged = base.clone().prefill(|i| i.page(64)).decode(|i| i.page(16).tp(2));
    for base in [base.clone(), base.clone().bytes(), base.pull(), repaged] {
        shows_fault_free(one_request, base, "every_component", "wrong content");
    }
}
