//! Whatever bytes come from the nf_tables socket: reading them ends, in a table or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nodewall::nft::netlink::{Malformed, Snapshot, acknowledgement, generation, messages};

fn read(bytes: &[u8]) -> Result<(), Malformed> {
    let mut snapshot = Snapshot::default();
    for message in messages(bytes)? {
        acknowledgement(&message)?;
        let _ = generation(&message);
        snapshot.take(&message)?;
    }
    let sets = snapshot.sets_to_read(|_| true);
    snapshot.finish(0, &sets).map(|_| ())
}

fuzz_target!(|bytes: &[u8]| {
    let _ = read(bytes);
});
