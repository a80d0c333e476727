//! Generations and records from a disk: whatever bytes, they are what was written or a reason; also where the checksum is right.

#![no_main]

use libfuzzer_sys::fuzz_target;
use nodewall::reconcile::Record;
use nodewall::store::{decode, decode_record, encode, encode_record};
use sha2::{Digest, Sha256};

fuzz_target!(|bytes: &[u8]| {
    let _ = decode(bytes);
    let _ = decode_record(bytes);
    let mut signed = bytes.to_vec();
    signed.extend_from_slice(&Sha256::digest(bytes));
    if let Ok(generation) = decode(&signed) {
        assert_eq!(decode(&encode(&generation)).as_ref(), Ok(&generation));
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        assert_eq!(decode_record(&encode_record(text)).as_deref(), Ok(text));
        if let Ok(record) = serde_json::from_str::<Record>(text) {
            let again = serde_json::to_string(&record).expect("it has a JSON form");
            assert_eq!(serde_json::from_str::<Record>(&again).expect("it is read again"), record);
        }
    }
});
