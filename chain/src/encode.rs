//! RLP and EIP-2718 encodings of what nodes say in JSON, to hash it again.
//!
//! Written out here, and not with alloy's consensus types, because a proof must cope with what those refuse: signatures of
//! any shape (before EIP-155, or a chain's own), receipts of types nobody knows yet, headers with further fields.

use crate::block::{Authorization, Block, Log, Receipt, Transaction, Withdrawal};
use alloy::primitives::{Address, B256, Bytes, Signature, U256, keccak256, normalize_v};
use alloy::rlp::{BufMut as _, EMPTY_STRING_CODE, Encodable, Header};

/// An RLP list of what `fill` writes.
fn list(fill: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut payload = Vec::with_capacity(512);
    fill(&mut payload);
    let header = Header { list: true, payload_length: payload.len() };
    let mut out = Vec::with_capacity(payload.len() + header.length() + 1);
    header.encode(&mut out);
    out.extend_from_slice(&payload);
    out
}

fn append_list(out: &mut Vec<u8>, fill: impl FnOnce(&mut Vec<u8>)) {
    out.extend_from_slice(&list(fill));
}

/// EIP-2718: the type in front of the list.
fn typed(kind: u64, list: &[u8]) -> Option<Vec<u8>> {
    let kind = u8::try_from(kind).ok().filter(|kind| *kind < 0x80)?;
    Some([&[kind], list].concat())
}

impl Block {
    /// The hash of the header as these fields make it. `None` where the chain's header lacks what Ethereum's has.
    pub fn header_hash(&self) -> Option<B256> {
        let (bloom, mix_hash, nonce) = (self.logs_bloom?, self.mix_hash?, self.nonce?);
        let (uncles, miner, state_root) = (self.sha3_uncles?, self.miner.or(self.author)?, self.state_root?);
        let (gas_limit, gas_used) = (self.gas_limit?, self.gas_used?);
        // In the order in which forks added them: item 15 and on.
        let optional: [Option<&dyn Encodable>; 8] = [
            some(&self.base_fee_per_gas),
            some(&self.withdrawals_root),
            some(&self.blob_gas_used),
            some(&self.excess_blob_gas),
            some(&self.parent_beacon_block_root),
            some(&self.requests_hash),
            some(&self.block_access_list_hash),
            some(&self.slot_number),
        ];
        let last = optional.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
        let rlp = list(|out| {
            self.parent_hash.encode(out);
            uncles.encode(out);
            miner.encode(out);
            state_root.encode(out);
            self.transactions_root.encode(out);
            self.receipts_root.encode(out);
            bloom.encode(out);
            self.difficulty.encode(out);
            self.number.encode(out);
            gas_limit.encode(out);
            gas_used.encode(out);
            self.timestamp.encode(out);
            self.extra_data.encode(out);
            mix_hash.encode(out);
            nonce.encode(out);
            for field in &optional[..last] {
                match field {
                    Some(field) => field.encode(out),
                    None => out.put_u8(EMPTY_STRING_CODE),
                }
            }
        });
        Some(keccak256(rlp))
    }
}

fn some<T: Encodable>(field: &Option<T>) -> Option<&dyn Encodable> {
    field.as_ref().map(|field| field as &dyn Encodable)
}

impl Transaction {
    /// The bytes that its hash and the transactions root are made of. `None` for types we do not know, and where a field
    /// of its type is missing.
    pub(crate) fn encoded(&self) -> Option<Vec<u8>> {
        let (nonce, gas, value, input) = (&self.nonce, &self.gas, &self.value, &self.input);
        match self.kind {
            0 => {
                let (v, r, s) = (self.v?, self.r?, self.s?);
                let price = self.gas_price?;
                Some(list(|out| encode_all(out, &[nonce, &price, gas, &To(self.to), value, input, &v, &r, &s])))
            }
            1 => {
                let (chain, price) = (self.chain_id?, self.gas_price?);
                self.signed(&[&chain, nonce, &price, gas, &To(self.to), value, input], |_| ())
            }
            2 => self.signed(&[&self.chain_id?, nonce, &self.tip()?, &self.fee()?, gas, &To(self.to), value, input], |_| ()),
            3 => {
                let (blob_fee, blobs) = (self.max_fee_per_blob_gas?, self.blob_versioned_hashes.as_ref()?);
                self.signed(&[&self.chain_id?, nonce, &self.tip()?, &self.fee()?, gas, &To(self.to), value, input], |out| {
                    blob_fee.encode(out);
                    blobs.encode(out);
                })
            }
            4 => {
                let authorizations = self.authorization_list.as_ref()?;
                self.signed(&[&self.chain_id?, nonce, &self.tip()?, &self.fee()?, gas, &To(self.to), value, input], |out| {
                    append_list(out, |out| authorizations.iter().for_each(|one| encode_authorization(out, one)));
                })
            }
            0x7e => {
                let (source, mint, system) =
                    (self.source_hash?, self.mint.unwrap_or_default(), self.is_system_tx.unwrap_or_default());
                let fields: [&dyn Encodable; 8] = [&source, &self.from, &To(self.to), &mint, value, gas, &system, input];
                typed(self.kind, &list(|out| encode_all(out, &fields)))
            }
            // Arbitrum's internal transaction, the first of each block. Its hash covers no value, since it never has one.
            0x6a if value.is_zero() => {
                typed(self.kind, &list(|out| encode_all(out, &[&self.chain_id.unwrap_or_default(), input])))
            }
            _ => None,
        }
    }

    /// A typed transaction: its first fields, the access list, what else the type has, the signature.
    fn signed(&self, first: &[&dyn Encodable], more: impl FnOnce(&mut Vec<u8>)) -> Option<Vec<u8>> {
        let (y_parity, r, s) = (self.y_parity.or(self.v)?, self.r?, self.s?);
        typed(
            self.kind,
            &list(|out| {
                encode_all(out, first);
                append_list(out, |out| {
                    for item in self.access_list.iter().flatten() {
                        append_list(out, |out| encode_all(out, &[&item.address, &item.storage_keys]));
                    }
                });
                more(out);
                encode_all(out, &[&y_parity, &r, &s]);
            }),
        )
    }

    /// Who signed it, of Ethereum's types. `None` where the signature is none.
    pub fn signer(&self) -> Option<Address> {
        let (v, r, s) = (self.y_parity.or(self.v)?, self.r?, self.s?);
        let v = u64::try_from(v).ok()?;
        let signature = Signature::new(r, s, normalize_v(v)?);
        signature.recover_address_from_prehash(&self.signing_hash(v)?).ok()
    }

    /// What is signed is what is hashed without the signature. (EIP-155: and with the chain's id in its place.)
    fn signing_hash(&self, v: u64) -> Option<B256> {
        if self.kind == 0 {
            let (price, nothing) = (self.gas_price?, U256::ZERO);
            let chain = (v >= 35).then(|| (v - 35) / 2);
            return Some(keccak256(list(|out| {
                encode_all(out, &[&self.nonce, &price, &self.gas, &To(self.to), &self.value, &self.input]);
                if let Some(chain) = chain {
                    encode_all(out, &[&chain, &nothing, &nothing]);
                }
            })));
        }
        let whole = self.encoded()?;
        let signature = [self.y_parity.or(self.v)?, self.r?, self.s?].iter().map(Encodable::length).sum::<usize>();
        let mut fields = whole.get(1..)?;
        let header = Header::decode(&mut fields).ok()?;
        let unsigned = fields.get(..header.payload_length.checked_sub(signature)?)?;
        let mut out = vec![*whole.first()?];
        Header { list: true, payload_length: unsigned.len() }.encode(&mut out);
        out.extend_from_slice(unsigned);
        Some(keccak256(out))
    }

    fn fee(&self) -> Option<U256> {
        self.max_fee_per_gas
    }

    fn tip(&self) -> Option<U256> {
        self.max_priority_fee_per_gas
    }
}

fn encode_all(out: &mut Vec<u8>, fields: &[&dyn Encodable]) {
    for field in fields {
        field.encode(out);
    }
}

/// The recipient, or the empty string of a creation.
struct To(Option<Address>);

impl Encodable for To {
    fn encode(&self, out: &mut dyn alloy::rlp::BufMut) {
        match self.0 {
            Some(address) => address.encode(out),
            None => out.put_u8(EMPTY_STRING_CODE),
        }
    }
}

fn encode_authorization(out: &mut Vec<u8>, one: &Authorization) {
    append_list(out, |out| encode_all(out, &[&one.chain_id, &one.address, &one.nonce, &one.y_parity, &one.r, &one.s]));
}

impl Withdrawal {
    /// The bytes that the withdrawals root is made of. `None` where one is missing.
    pub(crate) fn encoded(&self) -> Option<Vec<u8>> {
        let (index, validator, address, amount) = (self.index?, self.validator_index?, self.address?, self.amount?);
        Some(list(|out| encode_all(out, &[&index, &validator, &address, &amount])))
    }
}

impl Receipt {
    /// The bytes that the receipts root is made of. A type we do not know is encoded as most are; whether the chain agrees
    /// shows in the root. `None` where status, gas or bloom is missing.
    pub(crate) fn encoded(&self) -> Option<Vec<u8>> {
        let (bloom, gas) = (self.logs_bloom?, self.cumulative_gas_used?);
        let outcome: &dyn Encodable = match (&self.status, &self.root) {
            (Some(status), _) => status,
            (None, Some(root)) => root,
            (None, None) => return None,
        };
        let rlp = list(|out| {
            encode_all(out, &[outcome, &gas, &bloom]);
            append_list(out, |out| self.logs.iter().for_each(|log| encode_log(out, log)));
            // op-geth: the nonce is in the hash only together with the version, that is since Canyon.
            if let (0x7e, Some(version)) = (self.kind, self.deposit_receipt_version) {
                encode_all(out, &[&self.deposit_nonce.unwrap_or_default(), &version]);
            }
        });
        if self.kind == 0 { Some(rlp) } else { typed(self.kind, &rlp) }
    }
}

fn encode_log(out: &mut Vec<u8>, log: &Log) {
    let (address, topics, data): (&Address, &Vec<B256>, &Bytes) = (&log.address, &log.topics, &log.data);
    append_list(out, |out| encode_all(out, &[address, topics, data]));
}

/// Whether the type is one of Ethereum's own, whose encoding an EIP has fixed for good (EIP-2718).
pub(crate) fn is_fixed(kind: u64) -> bool {
    kind <= 4
}

/// Whether we know how a transaction of this type is hashed.
pub(crate) fn knows_transaction(kind: u64) -> bool {
    matches!(kind, 0..=4 | 0x7e | 0x6a)
}

/// Whether we know how a receipt of this type goes into the root: Ethereum's types, OP deposits, Arbitrum's own.
pub(crate) fn knows_receipt(kind: u64) -> bool {
    matches!(kind, 0..=4 | 0x7e | 0x64..=0x6a)
}
