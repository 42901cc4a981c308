//! The fuzzers' properties, held on the stable toolchain over their corpus and changes to it; and what only the real
//! PostgreSQL can say of it.

use std::path::Path;

use proptest::prelude::*;
use proptest::sample::{Index, select};

use crate::support::TestApp;

#[path = "../../fuzz/src/lib.rs"]
mod properties;

use properties::{event, projection, signature};

/// The files of `fuzz/corpus/<target>`.
fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let files = std::fs::read_dir(&folder).unwrap();
    let entries: Vec<_> = files.map(|file| std::fs::read(file.unwrap().path()).unwrap()).collect();
    assert!(entries.len() > 10, "{} entries in {}", entries.len(), folder.display());
    entries
}

/// An entry of the corpus with a few bytes changed, put in, taken out or repeated.
fn changed(target: &str) -> impl Strategy<Value = Vec<u8>> + use<> {
    let byte = prop_oneof![any::<u8>(), select(b"{}[]\",:=\\u0eE+-.19vt\n".as_slice())];
    let change = (any::<Index>(), 0..4_u8, byte, 0..24_usize);
    (select(corpus(target)), prop::collection::vec(change, 0..6)).prop_map(|(mut data, changes)| {
        for (at, what, byte, length) in changes {
            let at = at.index(data.len() + 1);
            let end = data.len().min(at + length);
            match what {
                0 => data.insert(at, byte),
                1 => drop(data.drain(at..end)),
                2 => data[at..end].iter_mut().take(1).for_each(|old| *old = byte),
                _ => drop(data.splice(at..at, data[at..end].to_vec())),
            }
        }
        data
    })
}

#[test]
fn the_corpus_has_every_property() {
    corpus("signature").iter().for_each(|data| signature::hold(data));
    corpus("projection").iter().for_each(|data| projection::hold(data));
    corpus("event").iter().for_each(|data| drop(event::hold(data)));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_header_is_accepted_exactly_where_the_rules_accept_it(data in changed("signature")) {
        signature::hold(&data);
    }

    #[test]
    fn any_bytes_are_an_event_that_can_be_kept_or_none(data in changed("event")) {
        event::hold(&data);
    }

    #[test]
    fn any_object_is_projected_to_what_stands_in_it(data in changed("projection")) {
        projection::hold(&data);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_payload_of_the_corpus_is_stored_as_it_is() {
    let app = TestApp::start().await;
    let payloads: Vec<_> =
        corpus("event").iter().chain(&corpus("projection")).flat_map(|data| event::hold(data)).collect();
    assert!(payloads.len() > 40, "{}", payloads.len());
    for payload in payloads {
        let read = app.sql.query_one("SELECT $1::text::jsonb::text::jsonb = $1::text::jsonb", &[&payload]).await;
        assert!(read.unwrap_or_else(|error| panic!("{error:?}: {payload}")).get::<_, bool>(0));
    }
}
