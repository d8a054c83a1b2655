//! A proxy's header: whatever an attribute holds, it is no other attribute.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/panel/src/subject.rs"]
mod subject;

fuzz_target!(|text: &str| {
    let _ = subject::common_names(text);
    let (common_name, organization) = text.split_once('\0').unwrap_or((text, ""));
    let subject = format!("O={},CN={}", escaped(organization), escaped(common_name));
    assert_eq!(subject::common_names(&subject), Some(vec![common_name.to_owned()]));
});

/// As OpenSSL writes a value with XN_FLAG_RFC2253.
fn escaped(value: &str) -> String {
    let mut text = String::new();
    let last = value.chars().count().saturating_sub(1);
    for (at, character) in value.chars().enumerate() {
        match character {
            ',' | '+' | '"' | '\\' | '<' | '>' | ';' => text.extend(['\\', character]),
            '#' if at == 0 => text.push_str("\\#"),
            ' ' if at == 0 || at == last => text.push_str("\\ "),
            ' '..='~' => text.push(character),
            _ => {
                for octet in character.to_string().bytes() {
                    text.push_str(&format!("\\{octet:02X}"));
                }
            }
        }
    }
    text
}
