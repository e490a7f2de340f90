import { createPublicKey, randomBytes, verify } from 'node:crypto'
import { readFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { bitsOf, contextTag, type DerNode, readDer } from '#shared/pki/der'
import { OID } from '#shared/pki/oid'
import { readDistributionPoint, readExtensions } from '#shared/pki/read-extensions'
import type { Issuer } from '../../enrollment/ca/issue.ts'
import { shardOf, shardUrl } from '../../enrollment/ca/shard.ts'
import type { ListedRevocation } from '../../enrollment/registry/registry.ts'
import { openRevocationList } from '../../enrollment/revocation-list.ts'
import { testAuthority } from '../support/pki.ts'

const HOUR_MS = 3_600_000
const DAY_MS = 24 * HOUR_MS
const START = Date.UTC(2026, 5, 1)

const authority = await testAuthority()
t.teardown(authority.remove)

/** Revocations as the registry answers them, in a fixture that the registry's contract suite keeps honest. */
function revocations() {
  const all: ListedRevocation[] = []
  let pages = 0
  return {
    all,
    pages: () => pages,
    add(of: Partial<ListedRevocation> = {}): ListedRevocation {
      const serial = of.serial ?? `4${randomBytes(16).toString('hex').slice(1)}`
      const added: ListedRevocation = {
        serial,
        revokedAt: START,
        reason: 'keyCompromise',
        notAfter: START + 30 * DAY_MS,
        ...of,
        mark: all.length + 1,
      }
      all.push(added)
      return added
    },
    registry: {
      revocationMark: async () => all.length,
      revokedAfter: async (
        _issuer: string,
        { mark, notExpiredAt, limit }: { mark: number; notExpiredAt: number; limit: number },
      ) => {
        pages += 1
        return all.filter((one) => one.mark > mark && one.notAfter >= notExpiredAt).slice(0, limit)
      },
    },
  }
}

function open(t: Test, options: { shards?: number; directory?: string } = {}) {
  const { shards = 4, directory = join(t.testdir(), 'crl') } = options
  const issuer: Issuer = { ...authority.device, crlShards: shards }
  const revoked = revocations()
  const start = () => openRevocationList({ registry: revoked.registry, issuer, directory })
  return { issuer, revoked, directory, start, list: start() }
}

/** What a relying party reads in a CRL; the signature is checked. */
function read(der: Buffer): { serials: string[]; url: string } {
  const [tbs, , signature] = readDer(der).children
  if (tbs === undefined) throw new Error('no CRL')
  const isSigned = verify('sha256', tbs.raw, createPublicKey(authority.device.pem), bitsOf(signature))
  if (!isSigned) throw new Error('not signed by the device CA')
  const list = tbs.children[5]
  const hasEntries = list !== undefined && list.tag !== contextTag(0, 'constructed')
  const extensions = readExtensions(tbs.children.at(-1)?.children[0])
  const point = extensions.get(OID.issuingDistributionPoint)
  if (point?.isCritical !== true) throw new Error('no critical IDP')
  return {
    serials: (hasEntries ? list.children : []).map(serialOf).toSorted(),
    url: readDistributionPoint({ ...point, value: Buffer.from(asPoints(point.value)) }),
  }
}

/** An IDP holds one distribution point where the CRLDP of a certificate holds a list of them. */
function asPoints(value: Buffer): Buffer {
  return Buffer.concat([Buffer.from([0x30, value.length]), value])
}

function serialOf(entry: DerNode): string {
  return (entry.children[0]?.content.toString('hex') ?? '').padStart(32, '0')
}

const serials = (der: Buffer | undefined) => (der ? read(der).serials : [])

t.test('a list is signed once, and again when something was revoked or half its life is over', async (t) => {
  const { list, revoked } = open(t, { shards: 0 })
  const numbers: number[] = []
  const refresh = async (now: number) => {
    await list.refresh(now)
    numbers.push(list.published?.number ?? 0)
  }
  await refresh(START)
  await refresh(START + 1_000)
  t.equal(numbers[1], numbers[0], 'nothing happened')
  revoked.add()
  await refresh(START + 2_000)
  t.match(list.published, { entries: 1 })
  await refresh(START + 2_000 + 11 * HOUR_MS)
  t.equal(numbers[3], numbers[2])
  await refresh(START + 2_000 + 12 * HOUR_MS)
  t.ok((numbers[4] ?? 0) > (numbers[3] ?? 0))
  t.match(list.published, { nextUpdate: START + 2_000 + 36 * HOUR_MS })
  t.equal(list.nextUpdate, START + 2_000 + 36 * HOUR_MS)
})

t.test('every revocation is on its shard and on the full list, each with its own URL', async (t) => {
  const { list, revoked, issuer } = open(t)
  t.equal(list.nextUpdate, null)
  for (let index = 0; index < 50; index++) revoked.add()
  await list.refresh(START)
  const full = read(list.published?.der ?? Buffer.alloc(0))
  t.equal(full.url, issuer.crlUrl)
  t.same(full.serials, revoked.all.map(({ serial }) => serial).toSorted())
  for (let shard = 0; shard < 4; shard++) {
    const { der } = list.shard(shard) ?? {}
    const found = read(der ?? Buffer.alloc(0))
    t.equal(found.url, shardUrl(issuer, shard))
    const own = revoked.all.filter(({ serial }) => shardOf(serial, 4) === shard)
    t.same(found.serials, own.map(({ serial }) => serial).toSorted())
    t.ok(own.length > 0)
  }
  t.throws(() => list.shard(4), RangeError)
})

t.test('a revocation signs its shard anew and leaves the others', async (t) => {
  const { list, revoked } = open(t)
  await list.refresh(START)
  const before = [0, 1, 2, 3].map((shard) => list.shard(shard)?.number)
  const { serial } = revoked.add()
  await list.refresh(START + 5_000)
  const changed = [0, 1, 2, 3].filter((shard) => list.shard(shard)?.number !== before[shard])
  t.same(changed, [shardOf(serial, 4)])
  await list.refresh(START + 12 * HOUR_MS)
  const due = [0, 1, 2, 3].filter((shard) => list.shard(shard)?.thisUpdate === START + 12 * HOUR_MS)
  t.equal(due.length, 3, 'half through their lives the others are signed, whenever the full list was')
  t.ok((list.nextUpdate ?? 0) > START + DAY_MS)
})

t.test('an expired entry appears once more, on both its lists, and then goes', async (t) => {
  for (const shards of [0, 1]) {
    const { list, revoked } = open(t, { shards, directory: join(t.testdir(), String(shards)) })
    const short = revoked.add({ notAfter: START + HOUR_MS })
    const long = revoked.add()
    const both = [short.serial, long.serial].toSorted()
    const shown = () => [list.published?.der, ...(shards > 0 ? [list.shard(0)?.der] : [])].map(serials)
    const expect = (...wanted: string[]) => t.same(shown(), shards > 0 ? [wanted, wanted] : [wanted])
    await list.refresh(START)
    expect(...both)
    await list.refresh(START + 12 * HOUR_MS)
    expect(...both)
    await list.refresh(START + 24 * HOUR_MS)
    expect(long.serial)
    t.match(list.published, { entries: 1 })
  }
})

t.test('numbers rise over restarts, restores and the loss of the number', async (t) => {
  const { start, directory } = open(t)
  const numbers: number[] = []
  const refresh = async (now: number) => {
    const list = start()
    await list.refresh(now)
    numbers.push(list.published?.number ?? 0, (list.shard(0)?.number ?? 0) + 0.5) // a shard's follows the full list's
  }
  await refresh(START)
  await refresh(START)
  await refresh(START)
  rmSync(directory, { recursive: true })
  const afterLoss = open(t, { directory })
  await afterLoss.list.refresh(START + 5_000)
  numbers.push(afterLoss.list.published?.number ?? 0)
  t.same(
    numbers.toSorted((a, b) => a - b),
    numbers,
  )
  t.equal(new Set(numbers).size, 7)
})

t.test('a restart forgets no entry that expired meanwhile', async (t) => {
  const { list, revoked, start } = open(t)
  const short = revoked.add({ notAfter: START + HOUR_MS })
  const old = revoked.add({ notAfter: START - 2 * DAY_MS })
  await list.refresh(START)
  t.ok(serials(list.published?.der).includes(old.serial), 'a first list has everything')
  const again = start()
  await again.refresh(START + 10 * DAY_MS)
  t.same(serials(again.published?.der), [short.serial])
})

t.test('the full list lies on the disk as it is served', async (t) => {
  const { list, revoked, directory, issuer } = open(t)
  revoked.add()
  await list.refresh(START)
  t.same(readFileSync(join(directory, `${issuer.id}.crl`)), list.published?.der)
})

t.test('many revocations are read in slices, once', async (t) => {
  const { list, revoked } = open(t)
  for (let index = 0; index < 2_500; index++) revoked.add()
  let turns = 0
  const counting = setInterval(() => {
    turns += 1
  }, 0)
  await list.refresh(START)
  clearInterval(counting)
  t.equal(revoked.pages(), 3)
  t.match(list.published, { entries: 2_500 })
  t.ok(turns > 0, 'other work got its turn')
  revoked.add()
  await list.refresh(START + 1_000)
  t.equal(revoked.pages(), 4)
  t.match(list.published, { entries: 2_501 })
})

t.test('a list that could not be signed is signed the next time', async (t) => {
  const directory = join(t.testdir(), 'crl')
  const revoked = revocations()
  let isBroken = false
  const { signer } = authority.device
  const sign = async (tbs: Uint8Array) => {
    if (isBroken) throw new Error('the key cannot be reached')
    return signer.sign(tbs)
  }
  const issuer: Issuer = { ...authority.device, crlShards: 2, signer: { ...signer, sign } }
  const list = openRevocationList({ registry: revoked.registry, issuer, directory })
  await list.refresh(START)
  const { serial } = revoked.add()
  isBroken = true
  await t.rejects(list.refresh(START + 1_000), /cannot be reached/)
  isBroken = false
  await list.refresh(START + 2_000)
  t.same(serials(list.shard(shardOf(serial, 2))?.der), [serial])
  t.same(serials(list.published?.der), [serial])
})
