// Runs autocannon by the options on the standard input, and prints what it found. Each client has `paths` of its own: if all began
// with the first one, those that ask at the same time would ask for the same.
const autocannon = require('autocannon')

const { paths, ...options } = JSON.parse(require('fs').readFileSync(0, 'utf8'))
const parts = Math.min(paths.length, options.connections)
let clients = 0
options.setupClient = client => {
  const part = clients++ % parts
  client.setRequests(paths.filter((_, place) => place % parts === part).map(path => ({ path })))
}
autocannon(options).then(result => console.log(JSON.stringify(result)))
