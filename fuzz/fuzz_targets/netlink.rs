//! Whatever bytes come from the nf_tables socket or lie in a stored batch: reading them ends, in a table or an error, and what is
//! read has a form that stays as it is.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nodewall::nft::change::Loaded;
use nodewall::nft::netlink::{
    Malformed, Snapshot, Touches, acknowledgement, any_chain, canonical, generation, messages, replay,
};
use nodewall::nft::{json, text};

fn read(bytes: &[u8]) -> Result<Loaded, Malformed> {
    let mut snapshot = Snapshot::default();
    for message in messages(bytes)? {
        acknowledgement(&message)?;
        let _ = generation(&message);
        let _ = any_chain(&message);
        snapshot.take(&message)?;
    }
    let sets = snapshot.sets_to_read(|_| true);
    snapshot.finish(0, &sets)
}

fuzz_target!(|bytes: &[u8]| {
    let _ = Touches::default().take(bytes, Some(1));
    let _ = replay(bytes, 0);
    if let Ok(loaded) = read(bytes) {
        let once = canonical(&loaded.ruleset);
        assert_eq!(canonical(&once), once);
        let _ = (text::render(&once), json::render(&once));
    }
});
