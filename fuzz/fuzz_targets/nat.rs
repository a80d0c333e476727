//! Whatever bytes come for rules and sets of others: reading what they publish ends, in rules and elements or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nodewall::nft::netlink::messages;
use nodewall::nft::netlink::nat::{elements, nat_rule, set_shape};

fuzz_target!(|bytes: &[u8]| {
    let (mut shapes, mut payloads) = (Vec::new(), Vec::new());
    for message in messages(bytes).unwrap_or_default() {
        let _ = nat_rule(&message);
        shapes.extend(set_shape(&message).ok().flatten());
        payloads.push(message.payload.to_vec());
    }
    for shape in &shapes {
        let _ = elements(&payloads, shape);
    }
});
