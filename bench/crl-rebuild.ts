import { randomBytes } from 'node:crypto'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { openAuthority } from '../enrollment/ca/create-ca.ts'
import { signCrl } from '../enrollment/ca/crl.ts'
import { RevokedEntries, type RevokedEntry } from '../enrollment/ca/revoked-entries.ts'
import { DEFAULT_CRL_SHARDS } from '../enrollment/ca/shard.ts'

/** Rebuilds a CRL of so many entries, as the enrollment service does; says on stdout what it took. */
const [count = 0, rounds = 1] = process.argv.slice(2).map(Number)
const HOUR_MS = 3_600_000
const now = Math.floor(Date.now() / 1000) * 1000
const directory = mkdtempSync(join(tmpdir(), 'muster-bench-'))
const names = { trustDomain: 'bench.test', httpBase: 'http://127.0.0.1:8080' }
const { device: issuer } = await openAuthority({
  directory: join(directory, 'ca'),
  passphrase: 'bench',
  now,
  ...names,
})
rmSync(directory, { recursive: true })

const revocation = (): RevokedEntry => ({
  serial: `4${randomBytes(16).toString('hex').slice(1)}`,
  revokedAt: now - HOUR_MS,
  reason: 'keyCompromise',
})
const entries = Array.from({ length: count }, revocation)
const list = RevokedEntries.of(entries)
let number = 0
const sign = (of: RevokedEntries) =>
  signCrl(issuer, { number: ++number, thisUpdate: now, nextUpdate: now + HOUR_MS, entries: [of] })

/** One more revocation, on a list whose entries are encoded: what happens while the service runs. */
const again = await took(async () => {
  list.add(revocation())
  await sign(list)
})
/** Every entry encoded and checked: what happens once, at a start. */
const whole = await took(() => sign(RevokedEntries.of(entries)))
/** One more revocation, on the shard that the certificates name: one of so many that share the entries. */
const shard = RevokedEntries.of(entries.slice(0, Math.ceil(count / DEFAULT_CRL_SHARDS)))
const ofShard = await took(async () => {
  shard.add(revocation())
  await sign(shard)
})
process.stdout.write(JSON.stringify({ again, whole, shard: ofShard }))

async function took(work: () => Promise<unknown>): Promise<{ count: number; cpuS: number }> {
  for (let round = 0; round < 2; round++) await work() // rehearsal
  const before = process.cpuUsage()
  for (let round = 0; round < rounds; round++) await work()
  const { user, system } = process.cpuUsage(before)
  return { count: rounds, cpuS: (user + system) / 1e6 }
}
