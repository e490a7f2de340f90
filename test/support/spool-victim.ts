/**
 * A process that stores and sends reports until it is killed: `node spool-victim.ts <broker.db> <profile.json>`.
 * It says `stored` when its reports are on disk.
 */
import { readFileSync } from 'node:fs'
import type { Report } from '#shared/feed'
import { openJsonClient } from '#shared/json-client'
import { openLog } from '#shared/log'
import { openReplica } from '../../broker/replica/replica.ts'
import { Reporter } from '../../broker/replica/reports.ts'

const [path = '', profile = ''] = process.argv.slice(2)
const { reports, ...client } = JSON.parse(readFileSync(profile, 'utf8'))
const replica = openReplica(path)
const registry = openJsonClient(client)
const reporter = new Reporter({
  store: replica.spool,
  send: (batch) => registry.send('POST', '/v1/feed/reports', batch),
  state: () => ({ applied: null, sessions: 0, url: 'mqtts://localhost:1' }),
  stored: () => {},
  boot: 'victim',
  now: Date.now,
  random: () => 0,
  log: openLog('victim', 'silent'),
})
for (const report of reports as Report[]) reporter.report(report)
reporter.start()
process.send?.('stored')
