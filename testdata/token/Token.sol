// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

/// The least of ERC-20 that a demo and tests need: everything belongs to whoever deploys it.
contract Token {
    string public constant name = "Demo Dollar";
    string public constant symbol = "DUSD";
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
        balanceOf[msg.sender] -= value;
        balanceOf[to] += value;
        emit Transfer(msg.sender, to, value);
        return true;
    }
}

/// Pays on, as an exchange's hot wallet does: the coin reaches the payee in an inner call, and no log tells.
contract Forwarder {
    function pay(address payable to) external payable {
        (bool sent, ) = to.call{value: msg.value}("");
        require(sent, "forward");
    }
}
