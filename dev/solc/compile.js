// Compiles the contracts with the pinned compiler: node compile.js NODE_MODULES ROOT, where ROOT is the checkout. Writes beside
// each source what was made of it; with --check it writes nothing and names the files that would change.
//
// sweeper/contracts: NAME.json has the creation code (the constructor's arguments follow it), the code that is then on the
// chain, and where in it the immutable values are, in bytes. testdata: NAME.hex has the creation code. All without 0x.
'use strict'
const fs = require('fs')
const path = require('path')

const [modules, root, ...options] = process.argv.slice(2)
const onlyCheck = options.length === 1 && options[0] === '--check'
if (options.length && !onlyCheck) throw new Error(`expected --check or nothing, not ${options.join(' ')}`)
const solc = require(path.join(modules, 'solc'))

// What can be the same everywhere: no PUSH0, which some chains lack, and no hash of the comments at the end of the code.
const optimizer = { enabled: true, runs: 1000000 }
const ours = { evmVersion: 'paris', optimizer, viaIR: true, metadata: { appendCBOR: false, bytecodeHash: 'none' } }
const folders = [
  { folder: 'sweeper/contracts', settings: ours, extension: 'json' },
  { folder: 'testdata/sweeping', settings: ours, extension: 'hex' },
  { folder: 'testdata/token', settings: { evmVersion: 'paris', optimizer: { enabled: true, runs: 200 } }, extension: 'hex' },
]

function compile(folder, settings) {
  const names = fs.readdirSync(path.join(root, folder)).filter((name) => name.endsWith('.sol')).sort()
  const outputs = ['evm.bytecode.object', 'evm.deployedBytecode.object', 'evm.deployedBytecode.immutableReferences']
  return names.flatMap((name) => {
    const sources = { [name]: { content: fs.readFileSync(path.join(root, folder, name), 'utf8') } }
    const input = { language: 'Solidity', sources, settings: { ...settings, outputSelection: { '*': { '*': outputs } } } }
    const output = JSON.parse(solc.compile(JSON.stringify(input)))
    const errors = (output.errors || []).map((error) => error.formattedMessage)
    if (errors.length) throw new Error(errors.join('\n'))
    const contracts = Object.entries(output.contracts[name])
    return contracts.map(([contract, { evm }]) => ({ contract, evm })).filter(({ evm }) => evm.bytecode.object)
  })
}

function json(evm) {
  const references = Object.values(evm.deployedBytecode.immutableReferences).flat()
  const places = references.map((place) => place.start).sort((a, b) => a - b)
  const all = { creation: evm.bytecode.object, runtime: evm.deployedBytecode.object, immutables: places }
  const onOneLine = (list) => list.replace(/\s+/g, ' ').replace('[ ', '[').replace(' ]', ']')
  return JSON.stringify(all, null, 2).replace(/\[[\s\d,]*\]/, onOneLine) + '\n'
}

let changed = 0
for (const { folder, settings, extension } of folders) {
  for (const { contract, evm } of compile(folder, settings)) {
    const file = path.join(folder, `${contract}.${extension}`)
    const text = extension === 'json' ? json(evm) : evm.bytecode.object + '\n'
    const target = path.join(root, file)
    if (fs.existsSync(target) && fs.readFileSync(target, 'utf8').trim() === text.trim()) continue
    changed += 1
    console.log(onlyCheck ? `${file} is not what its source compiles to; dev/contracts writes it` : `wrote ${file}`)
    if (!onlyCheck) fs.writeFileSync(target, text)
  }
}
process.exit(onlyCheck && changed ? 1 : 0)
