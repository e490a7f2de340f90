/**
 * A process that ends sessions until it is killed: `node expiry-victim.ts <sessions.db>`. Clients called `gone-…` have
 * been away for too long; it says of each when its session is over.
 */
import { openLog } from '#shared/log'
import { expireSessions } from '../../broker/store/session-expiry.ts'
import { EXPIRY_S, openStore } from './expiry-store.ts'

const [path = ''] = process.argv.slice(2)
let elapsedMs = 0
const store = openStore(path, () => elapsedMs)
elapsedMs = (EXPIRY_S + 1) * 1_000
await expireSessions({
  store,
  isConnected: (client) => !client.startsWith('gone-'),
  expired: ({ session }) => process.send?.(session.client),
  log: openLog('victim', 'silent'),
})
process.send?.('all')
setInterval(() => {}, 1_000) // until it is killed
