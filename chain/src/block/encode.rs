//! RLP and EIP-2718 encodings of transactions, receipts and withdrawals, to hash a node's JSON again.
//!
//! Written out here, because alloy's consensus types refuse what a proof must handle: signatures of any shape (before EIP-155,
//! or a chain's own), receipts of types that nobody knows yet, headers with further fields.

use super::header::Withdrawal;
use super::receipts::{Log, Receipt};
use super::rlp::{To, append_list, encode_all, list, typed};
use super::transaction::{ARBITRUM_INTERNAL, Authorization, OP_DEPOSIT, Transaction};
use alloy::primitives::{Address, B256, Bytes, Signature, U256, keccak256, normalize_v};
use alloy::rlp::{Encodable, Header};

impl Transaction {
    /// Encodes the transaction as its hash and the transactions root cover it. `None` if we do not know the type, or a field of
    /// the type is missing.
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
            OP_DEPOSIT => self.deposit(),
            // Its hash does not cover a value, since it has none.
            ARBITRUM_INTERNAL if value.is_zero() => {
                typed(self.kind, &list(|out| encode_all(out, &[&self.chain_id.unwrap_or_default(), input])))
            }
            _ => None,
        }
    }

    /// Encodes a transaction of OP Stack's type of deposits. Two chains have encodings of their own for it; the hash shows which
    /// it is.
    fn deposit(&self) -> Option<Vec<u8>> {
        let (to, value, gas, input) = (To(self.to), &self.value, &self.gas, &self.input);
        let Some(source) = self.source_hash else {
            // Berachain's system transaction (BRIP-0004). Its hash does not cover a value, since it has none.
            let (chain, price) = (self.chain_id?, self.gas_price.unwrap_or_default());
            let fields: [&dyn Encodable; 7] = [&chain, &self.from, &to, &self.nonce, gas, &price, input];
            return self
                .is_foreign_deposit()
                .then(|| typed(self.kind, &list(|out| encode_all(out, &fields))))
                .flatten()
                .filter(|encoded| keccak256(encoded) == self.hash);
        };
        let (mint, system) = (self.mint.unwrap_or_default(), self.is_system_tx.unwrap_or_default());
        let fields: [&dyn Encodable; 8] = [&source, &self.from, &to, &mint, value, gas, &system, input];
        let usual = typed(self.kind, &list(|out| encode_all(out, &fields)))?;
        if keccak256(&usual) == self.hash {
            return Some(usual);
        }
        // Mantle's deposits also mint and send ETH; what they send was added later.
        let (eth, sent) = (self.eth_value.unwrap_or_default(), self.eth_tx_value.unwrap_or_default());
        let fields: [&dyn Encodable; 10] = [&source, &self.from, &to, &mint, value, gas, &system, &eth, input, &sent];
        let mut mantle = [fields.len(), fields.len() - 1]
            .into_iter()
            .filter_map(|count| typed(self.kind, &list(|out| encode_all(out, &fields[..count]))));
        Some(mantle.find(|encoded| keccak256(encoded) == self.hash).unwrap_or(usual))
    }

    /// Encodes a typed transaction: its first fields, the access list, what else the type has, the signature.
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

    /// Recovers the signer, for Ethereum's own types. `None` if the signature is invalid.
    pub fn signer(&self) -> Option<Address> {
        let (v, r, s) = (self.y_parity.or(self.v)?, self.r?, self.s?);
        let v = u64::try_from(v).ok()?;
        let signature = Signature::new(r, s, normalize_v(v)?);
        signature.recover_address_from_prehash(&self.signing_hash(v)?).ok()
    }

    /// The hash that is signed: of the transaction without the signature, and by EIP-155 with the chain's id in its place.
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

fn encode_authorization(out: &mut Vec<u8>, one: &Authorization) {
    append_list(out, |out| encode_all(out, &[&one.chain_id, &one.address, &one.nonce, &one.y_parity, &one.r, &one.s]));
}

impl Withdrawal {
    /// Encodes the withdrawal as the withdrawals root covers it. `None` if a field is missing.
    pub(crate) fn encoded(&self) -> Option<Vec<u8>> {
        let (index, validator, address, amount) = (self.index?, self.validator_index?, self.address?, self.amount?);
        Some(list(|out| encode_all(out, &[&index, &validator, &address, &amount])))
    }
}

impl Receipt {
    /// Encodes the receipt as the receipts root covers it. An unknown type is encoded as most types are; the root shows whether
    /// the chain agrees. `None` if status, gas or bloom is missing.
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
            // op-geth: the hash covers the nonce only together with the version, that is since Canyon.
            if let (OP_DEPOSIT, Some(version)) = (self.kind, self.deposit_receipt_version) {
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

/// Whether the type is one of Ethereum's own, whose encoding never changes (EIP-2718).
pub(crate) fn is_fixed(kind: u64) -> bool {
    kind <= 4
}

/// Whether we can hash a transaction of this type.
pub(crate) fn knows_transaction(kind: u64) -> bool {
    matches!(kind, 0..=4 | OP_DEPOSIT | ARBITRUM_INTERNAL)
}

/// Whether we know the encoding of a receipt of this type: Ethereum's types, OP Stack deposits, Arbitrum's own.
pub(crate) fn knows_receipt(kind: u64) -> bool {
    matches!(kind, 0..=4 | OP_DEPOSIT | 0x64..=ARBITRUM_INTERNAL)
}
