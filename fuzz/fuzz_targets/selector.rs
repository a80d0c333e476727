//! Selectors: any text parses or says where it does not, and what parses prints as text that parses to the same.

#![no_main]

use libfuzzer_sys::fuzz_target;
use nodewall::policy::selector::Selector;

fuzz_target!(|text: &str| match Selector::parse(text) {
    Ok(selector) => {
        assert_eq!(Selector::parse(&selector.to_string()), Ok(selector.clone()));
        selector.matches(&[("role".to_owned(), "rail".to_owned())].into());
    }
    Err(error) => {
        assert!(text.is_char_boundary(error.offset) && text.is_char_boundary(error.offset + error.len));
    }
});
