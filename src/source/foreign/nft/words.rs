//! Rules of nft as people write them, from their JSON: for comments only.

use serde_json::Value as Json;

/// The longest text of a rule.
const LONGEST: usize = 400;

/// A rule.
pub(super) fn rule(expressions: &Json) -> String {
    let mut text = String::new();
    for statement in expressions.as_array().into_iter().flatten() {
        let words = statement_words(statement);
        if !words.is_empty() {
            if !text.is_empty() {
                text.push(' ');
            }
            text.push_str(&words);
        }
        if text.len() > LONGEST {
            break;
        }
    }
    text
}

fn statement_words(statement: &Json) -> String {
    let Some((kind, value)) = statement.as_object().and_then(|fields| fields.iter().next()) else {
        return String::new();
    };
    let field = |key: &str| value.get(key).unwrap_or(&Json::Null);
    match kind.as_str() {
        "match" => {
            let op = match field("op").as_str().unwrap_or_default() {
                "==" | "in" => String::new(),
                other => format!("{other} "),
            };
            format!("{} {op}{}", expression(field("left"), 0), expression(field("right"), 0))
        }
        "vmap" => format!("{} vmap {}", expression(field("key"), 0), expression(field("data"), 0)),
        "jump" | "goto" => format!("{kind} {}", field("target").as_str().unwrap_or_default()),
        "counter" => String::new(),
        "limit" => {
            let over = if field("inv").as_bool() == Some(true) { "over " } else { "" };
            format!("limit rate {over}{}/{}", field("rate"), field("per").as_str().unwrap_or("second"))
        }
        "log" => format!("log prefix \"{}\"", field("prefix").as_str().unwrap_or_default()),
        "set" => format!("{} {}", field("op").as_str().unwrap_or("add"), expression(field("set"), 0)),
        other => other.to_owned(),
    }
}

fn expression(value: &Json, depth: usize) -> String {
    if depth > 8 {
        return "...".to_owned();
    }
    let list = |items: &[Json], between: &str| {
        let shown: Vec<String> = items.iter().take(8).map(|item| expression(item, depth + 1)).collect();
        let more = if items.len() > 8 { format!("{between}...") } else { String::new() };
        format!("{}{more}", shown.join(between))
    };
    match value {
        Json::String(text) => text.clone(),
        Json::Array(items) => list(items, ","),
        Json::Object(fields) => {
            let Some((kind, inner)) = fields.iter().next() else { return String::new() };
            let text = |key: &str| inner.get(key).and_then(Json::as_str).unwrap_or_default().to_owned();
            match (kind.as_str(), inner) {
                ("payload", _) => format!("{} {}", text("protocol"), text("field")).trim().to_owned(),
                ("meta", _) => match text("key").as_str() {
                    key @ ("iif" | "oif" | "iifname" | "oifname") => key.to_owned(),
                    key => format!("meta {key}"),
                },
                ("ct", _) => format!("ct {}", text("key")),
                ("fib", _) => "fib".to_owned(),
                ("range", Json::Array(ends)) => list(ends, "-"),
                ("prefix", _) => format!("{}/{}", text("addr"), inner.get("len").unwrap_or(&Json::Null)),
                ("concat", Json::Array(parts)) => list(parts, " . "),
                ("set", Json::Array(items)) => {
                    let shown: Vec<String> = items
                        .iter()
                        .take(8)
                        .map(|item| match item.as_array().map(Vec::as_slice) {
                            Some([key, verdict]) => {
                                format!("{} : {}", expression(key, depth + 1), statement_words(verdict))
                            }
                            _ => expression(item, depth + 1),
                        })
                        .collect();
                    format!("{{ {}{} }}", shown.join(", "), if items.len() > 8 { ", ..." } else { "" })
                }
                ("elem", _) => expression(inner.get("val").unwrap_or(&Json::Null), depth + 1),
                ("&" | "|" | "^", Json::Array(parts)) => list(parts, &format!(" {kind} ")),
                _ => kind.clone(),
            }
        }
        other => other.to_string(),
    }
}
