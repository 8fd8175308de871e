// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

/// A token with what USDC had up to its version 2.1: permits (EIP-2612), authorizations (EIP-3009), a blacklist. Without its
/// proxy and its pause, which cost 2,600 and 2,100 gas a transaction. Everything belongs to whoever deploys it.
contract Dollar {
    string public constant name = "Signed Dollar";
    string public constant version = "2";
    string public constant symbol = "SUSD";
    uint8 public constant decimals = 6;
    uint256 public constant totalSupply = 1_000_000_000_000_000;

    bytes32 public immutable DOMAIN_SEPARATOR;
    address public immutable owner;
    bytes32 public constant PERMIT_TYPEHASH =
        keccak256("Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)");
    bytes32 public constant TRANSFER_WITH_AUTHORIZATION_TYPEHASH =
        keccak256(
            "TransferWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)"
        );

    /// The highest bit says that the account is blacklisted.
    mapping(address => uint256) private states;
    mapping(address => mapping(address => uint256)) public allowance;
    mapping(address => uint256) public nonces;
    mapping(address => mapping(bytes32 => bool)) public authorizationState;

    uint256 private constant BLACKLISTED = 1 << 255;

    event Transfer(address indexed from, address indexed to, uint256 value);
    event Approval(address indexed owner, address indexed spender, uint256 value);
    event AuthorizationUsed(address indexed authorizer, bytes32 indexed nonce);

    constructor() {
        owner = msg.sender;
        DOMAIN_SEPARATOR = keccak256(
            abi.encode(
                keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"),
                keccak256(bytes(name)),
                keccak256(bytes(version)),
                block.chainid,
                address(this)
            )
        );
        states[msg.sender] = totalSupply;
        emit Transfer(address(0), msg.sender, totalSupply);
    }

    modifier clean(address account) {
        require(states[account] & BLACKLISTED == 0, "blacklisted");
        _;
    }

    function blacklist(address account) external {
        require(msg.sender == owner, "owner");
        states[account] |= BLACKLISTED;
    }

    function balanceOf(address account) external view returns (uint256) {
        return states[account] & ~BLACKLISTED;
    }

    function transfer(address to, uint256 value) external returns (bool) {
        move(msg.sender, to, value);
        return true;
    }

    function approve(address spender, uint256 value) external clean(msg.sender) clean(spender) returns (bool) {
        allow(msg.sender, spender, value);
        return true;
    }

    function transferFrom(address from, address to, uint256 value) external clean(msg.sender) returns (bool) {
        uint256 allowed = allowance[from][msg.sender];
        require(allowed >= value, "allowance");
        if (allowed != type(uint256).max) allowance[from][msg.sender] = allowed - value;
        move(from, to, value);
        return true;
    }

    function permit(
        address from,
        address spender,
        uint256 value,
        uint256 deadline,
        uint8 v,
        bytes32 r,
        bytes32 s
    ) external clean(from) clean(spender) {
        require(deadline >= block.timestamp, "deadline");
        verify(from, permitted(from, spender, value, deadline), v, r, s);
        allow(from, spender, value);
    }

    function permitted(address from, address spender, uint256 value, uint256 deadline) private returns (bytes32) {
        return keccak256(abi.encode(PERMIT_TYPEHASH, from, spender, value, nonces[from]++, deadline));
    }

    function transferWithAuthorization(
        address from,
        address to,
        uint256 value,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        uint8 v,
        bytes32 r,
        bytes32 s
    ) external {
        require(block.timestamp > validAfter && block.timestamp < validBefore, "time");
        require(!authorizationState[from][nonce], "used");
        verify(
            from,
            keccak256(abi.encode(TRANSFER_WITH_AUTHORIZATION_TYPEHASH, from, to, value, validAfter, validBefore, nonce)),
            v,
            r,
            s
        );
        authorizationState[from][nonce] = true;
        emit AuthorizationUsed(from, nonce);
        move(from, to, value);
    }

    function verify(address signer, bytes32 content, uint8 v, bytes32 r, bytes32 s) private view {
        bytes32 digest = keccak256(abi.encodePacked("\x19\x01", DOMAIN_SEPARATOR, content));
        require(signed(signer, digest, v, r, s), "signature");
    }

    function signed(address signer, bytes32 digest, uint8 v, bytes32 r, bytes32 s) internal view virtual returns (bool) {
        return ecrecover(digest, v, r, s) == signer && signer != address(0);
    }

    function allow(address from, address spender, uint256 value) private {
        allowance[from][spender] = value;
        emit Approval(from, spender, value);
    }

    function move(address from, address to, uint256 value) private {
        uint256 had = states[from];
        require(had & BLACKLISTED == 0, "blacklisted");
        require(had >= value, "balance");
        states[from] = had - value;
        uint256 has = states[to];
        require(has & BLACKLISTED == 0, "blacklisted");
        states[to] = has + value;
        emit Transfer(from, to, value);
    }
}

/// As USDC since its version 2.2: an account with code, a delegated one too, is asked whether it has signed (ERC-1271).
contract AskingDollar is Dollar {
    function signed(address signer, bytes32 digest, uint8 v, bytes32 r, bytes32 s) internal view override returns (bool) {
        if (signer.code.length == 0) return super.signed(signer, digest, v, r, s);
        (bool ok, bytes memory answer) =
            signer.staticcall(abi.encodeWithSelector(0x1626ba7e, digest, abi.encodePacked(r, s, v)));
        return ok && answer.length == 32 && bytes4(answer) == 0x1626ba7e;
    }
}
