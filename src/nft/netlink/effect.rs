//! What a rule of anybody's may do to a packet that gets to it: drop it, or send it to another chain. Nothing is read of whom it does
//! that to.

use super::attribute::{Attributes, Malformed, Walk, Writer};
use super::base_chain::Family;
use super::constant::*;
use super::decode::Message;
use super::encode::{finish, header};

/// What a rule may do.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Effect {
    /// The chain that it is in.
    pub chain: String,
    /// It drops or rejects.
    pub drops: bool,
    /// It asks something that may drop: a program (`queue`), or an extension of iptables that we do not know.
    pub asks: bool,
    /// The chains that it names.
    pub leads_to: Vec<String>,
    /// It looks a verdict up in a map: that may be any verdict, and lead to any chain of the table.
    pub by_map: bool,
}

/// A request for all rules of a table.
pub fn list_rules(family: Family, table: &str, sequence: u32) -> Vec<u8> {
    let mut writer = Writer::default();
    let kind = NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETRULE;
    let start = header(&mut writer, kind, NLM_F_REQUEST | NLM_F_DUMP, sequence, family.number(), 0);
    writer.put_text(NFTA_RULE_TABLE, table);
    finish(&mut writer, start);
    writer.bytes
}

/// Extensions of iptables that let a packet go on, by their names (iptables-extensions(8)); NAT rewrites it.
const HARMLESS_TARGETS: &[&str] = &[
    "AUDIT",
    "CHECKSUM",
    "CLASSIFY",
    "CONNMARK",
    "CONNSECMARK",
    "CT",
    "DNAT",
    "DSCP",
    "ECN",
    "HL",
    "HMARK",
    "IDLETIMER",
    "LED",
    "LOG",
    "MARK",
    "MASQUERADE",
    "NETMAP",
    "NFLOG",
    "NOTRACK",
    "RATEEST",
    "REDIRECT",
    "SECMARK",
    "SET",
    "SNAT",
    "TCPMSS",
    "TCPOPTSTRIP",
    "TEE",
    "TOS",
    "TRACE",
    "TTL",
];

/// `NFTA_TARGET_NAME` (include/uapi/linux/netfilter/nf_tables_compat.h).
const NFTA_TARGET_NAME: u16 = 1;

/// The rule in a message; `None` when it is about something else.
///
/// # Errors
/// A message that is not as the kernel writes it.
pub fn effect(message: &Message<'_>) -> Result<Option<Effect>, Malformed> {
    if message.nft() != Some(NFT_MSG_NEWRULE) {
        return Ok(None);
    }
    let attributes = message.attributes()?;
    let mut effect = Effect { chain: attributes.text(NFTA_RULE_CHAIN), ..Effect::default() };
    for element in Walk::new(attributes.get(NFTA_RULE_EXPRESSIONS).unwrap_or_default()) {
        let (_, expression) = element?;
        let expression = Attributes::parse(expression)?;
        let data = expression.nested(NFTA_EXPR_DATA)?;
        match expression.text(NFTA_EXPR_NAME).as_str() {
            "immediate" if data.u32(NFTA_IMMEDIATE_DREG)? == Some(NFT_REG_VERDICT) => effect.verdict(&data)?,
            "reject" => effect.drops = true,
            "lookup" if data.u32(NFTA_LOOKUP_DREG)? == Some(NFT_REG_VERDICT) => effect.by_map = true,
            "target" => match data.text(NFTA_TARGET_NAME).as_str() {
                "DROP" | "REJECT" | "TARPIT" => effect.drops = true,
                known if HARMLESS_TARGETS.contains(&known) => {}
                _ => effect.asks = true,
            },
            "queue" | "synproxy" => effect.asks = true,
            _ => {}
        }
    }
    Ok(Some(effect))
}

impl Effect {
    fn verdict(&mut self, immediate: &Attributes<'_>) -> Result<(), Malformed> {
        let verdict = immediate.nested(NFTA_IMMEDIATE_DATA)?.nested(NFTA_DATA_VERDICT)?;
        match verdict.u32(NFTA_VERDICT_CODE)?.map(u32::cast_signed) {
            Some(NF_DROP) => self.drops = true,
            Some(NFT_JUMP | NFT_GOTO) => self.leads_to.push(verdict.text(NFTA_VERDICT_CHAIN)),
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::decode::messages;
    use super::*;

    fn rule(fill: impl FnOnce(&mut Writer)) -> Vec<u8> {
        let mut writer = Writer::default();
        let start = header(&mut writer, NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWRULE, 0, 1, NFPROTO_IPV4, 0);
        writer.put_text(NFTA_RULE_TABLE, "filter");
        writer.put_text(NFTA_RULE_CHAIN, "INPUT");
        writer.nest(NFTA_RULE_EXPRESSIONS, fill);
        finish(&mut writer, start);
        writer.bytes
    }

    fn expression(list: &mut Writer, name: &str, fill: impl FnOnce(&mut Writer)) {
        list.nest(NFTA_LIST_ELEM, |expression| {
            expression.put_text(NFTA_EXPR_NAME, name);
            expression.nest(NFTA_EXPR_DATA, fill);
        });
    }

    fn immediate(list: &mut Writer, code: i32, chain: Option<&str>) {
        expression(list, "immediate", |data| {
            data.put_u32(NFTA_IMMEDIATE_DREG, NFT_REG_VERDICT);
            data.nest(NFTA_IMMEDIATE_DATA, |data| {
                data.nest(NFTA_DATA_VERDICT, |verdict| {
                    verdict.put_u32(NFTA_VERDICT_CODE, code.cast_unsigned());
                    if let Some(chain) = chain {
                        verdict.put_text(NFTA_VERDICT_CHAIN, chain);
                    }
                });
            });
        });
    }

    fn read(bytes: &[u8]) -> Effect {
        effect(&messages(bytes).unwrap()[0]).unwrap().unwrap()
    }

    #[test]
    fn what_drops_and_what_leads_on_is_told() {
        let target = |name: &'static str| {
            read(&rule(|list| expression(list, "target", |data| data.put_text(NFTA_TARGET_NAME, name))))
        };
        let none = Effect { chain: "INPUT".to_owned(), ..Effect::default() };
        assert_eq!(read(&rule(|list| immediate(list, NF_ACCEPT, None))), none);
        assert_eq!(read(&rule(|list| immediate(list, NF_DROP, None))), Effect { drops: true, ..none.clone() });
        let jumps = read(&rule(|list| immediate(list, NFT_JUMP, Some("ufw-before-input"))));
        assert_eq!(jumps, Effect { leads_to: vec!["ufw-before-input".to_owned()], ..none.clone() });
        let lookup =
            |register| read(&rule(|list| expression(list, "lookup", |data| data.put_u32(NFTA_LOOKUP_DREG, register))));
        assert_eq!(lookup(NFT_REG_VERDICT), Effect { by_map: true, ..none.clone() });
        assert_eq!(lookup(NFT_REG_1), none, "a map of something else");
        assert_eq!(target("REJECT"), Effect { drops: true, ..none.clone() });
        assert_eq!(target("LOG"), none);
        assert_eq!(target("NFQUEUE"), Effect { asks: true, ..none.clone() });
        assert_eq!(read(&rule(|list| expression(list, "reject", |_| {}))), Effect { drops: true, ..none });
    }

    #[test]
    fn malformed_rules_are_errors_or_nothing() {
        let whole = rule(|list| {
            immediate(list, NFT_GOTO, Some("a"));
            expression(list, "target", |data| data.put_text(NFTA_TARGET_NAME, "DROP"));
        });
        for index in 0..whole.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut bytes = whole.clone();
                bytes[index] = value;
                for message in messages(&bytes).unwrap_or_default() {
                    let _ = effect(&message);
                }
            }
        }
    }
}
