// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

/// A token that keeps a tenth of each transfer. What arrives is what its event says.
contract FeeToken {
    string public constant name = "Fee Dollar";
    string public constant symbol = "FUSD";
    uint8 public constant decimals = 6;
    uint256 public totalSupply = 1_000_000_000_000_000;
    mapping(address => uint256) public balanceOf;

    event Transfer(address indexed from, address indexed to, uint256 value);

    constructor() {
        balanceOf[msg.sender] = totalSupply;
        emit Transfer(address(0), msg.sender, totalSupply);
    }

    function transfer(address to, uint256 value) external returns (bool) {
        require(balanceOf[msg.sender] >= value, "balance");
        uint256 fee = value / 10;
        balanceOf[msg.sender] -= value;
        balanceOf[address(this)] += fee;
        balanceOf[to] += value - fee;
        emit Transfer(msg.sender, address(this), fee);
        emit Transfer(msg.sender, to, value - fee);
        return true;
    }
}

/// Pays out of what it holds of any token, twice in one transaction, as an exchange's batched withdrawals do.
contract Twice {
    function pay(FeeToken token, address to, uint256 one, uint256 other) external {
        token.transfer(to, one);
        token.transfer(to, other);
    }
}
