import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { generateKey, spkiDer } from '#shared/pki/keys'
import { derToPem } from '#shared/pki/pem'
import { readTrust, type TrustRecord, trustTopic } from '#shared/trust-bundle'
import { systemClock } from '../../device-sim/clock.ts'
import type { LinkOptions, OpenLink } from '../../device-sim/mqtt-link.ts'
import { Trust } from '../../device-sim/trust.ts'
import { hearingTrust } from '../../device-sim/trust-news.ts'
import { issueCaCertificate } from '../../enrollment/ca/ca-certificate.ts'
import { caDirectory } from '../../enrollment/ca/ca-directory.ts'
import { makeKey } from '../../enrollment/ca/key-access.ts'
import { nextRoot } from '../../enrollment/ca/next-generation.ts'
import { keySigner } from '../../enrollment/ca/signer.ts'
import fc from '../support/properties.ts'

const trustDomain = 'muster.local'
const now = Date.now()

async function makeRoot() {
  const key = generateKey()
  const signer = keySigner(key)
  const der = await issueCaCertificate({ kind: 'root', trustDomain, now, spki: spkiDer(key) }, signer)
  return { der, signer, pem: derToPem(der, 'CERTIFICATE') }
}

const madeWith = (pinned: string) => ({ pinned, clock: systemClock, certificate: () => '' })

/** What a rollover of this root brings. */
async function rollover(t: Test, root: { der: Buffer; signer: ReturnType<typeof keySigner> }) {
  const made = await nextRoot({
    directory: caDirectory(t.testdir()),
    httpBase: 'http://localhost:8080',
    nextKey: () => makeKey({ passphrase: 'a long passphrase for a short test' }),
    trustDomain,
    root,
    now,
  })
  const pemOf = (role: string) => made.find((one) => one.role === role)?.pem ?? ''
  return { root: pemOf('root'), newWithOld: pemOf('new-with-old'), oldWithNew: pemOf('old-with-new'), pemOf }
}

t.test('a device takes a new root when its own vouches for it, and no other', async (t) => {
  const old = await makeRoot()
  const next = await rollover(t, old)
  const foreign = await rollover(t, await makeRoot())
  const directory = t.testdir()
  const path = join(directory, 'trust.json')
  const trust = Trust.open(directory, madeWith(old.pem))
  const refused: [string, TrustRecord][] = [
    ['without a link', { version: 2, roots: [old.pem, next.root], links: [] }],
    ['with a link of another root', { version: 2, roots: [foreign.root], links: [foreign.newWithOld] }],
    ['with a link for another root', { version: 2, roots: [foreign.root], links: [next.newWithOld] }],
    ['with the link of the wrong direction', { version: 2, roots: [next.root], links: [next.oldWithNew] }],
    ['an issuing CA is no root', { version: 2, roots: [next.pemOf('device')], links: [next.newWithOld] }],
    ['what cannot be read', { version: 2, roots: ['x'], links: [next.newWithOld] }],
  ]
  for (const [why, bundle] of refused) {
    await trust.learn(bundle)
    t.equal(trust.roots, old.pem, why)
  }
  await trust.learn({ version: 2, roots: [next.root], links: [next.newWithOld, next.oldWithNew] })
  t.equal(trust.roots, old.pem + next.root, 'the old one stays until the whole bundle is fetched')
  t.equal(trust.version, 1)
  t.strictSame(JSON.parse(readFileSync(path, 'utf8')).roots, [old.pem, next.root])
  t.equal(Trust.open(directory, madeWith(old.pem)).roots, old.pem + next.root, 'also after a restart')
  await trust.store({ version: 3, roots: [next.root] })
  await trust.store({ version: 2, roots: [old.pem] })
  t.equal(trust.roots, next.root, 'an older bundle that comes late changes nothing')
  t.equal(trust.version, 3)
})

t.test('whatever comes under the topic, it is a bundle or nothing', (t) => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 200 }), (octets) => {
      const bundle = readTrust(octets)
      return bundle === null || bundle.roots.length > 0
    }),
  )
  fc.assert(fc.property(fc.json(), (text) => readTrust(Buffer.from(text)) === null))
  for (const value of [
    { version: 0, roots: ['R'], links: [] },
    { version: 1, roots: [], links: [] },
    { version: 1.5, roots: ['R'], links: [] },
    { version: 1, roots: Array(17).fill('R'), links: [] },
    { version: 1, roots: ['R'.repeat(16_385)], links: [] },
    { version: 1, roots: 'R', links: [] },
  ])
    t.equal(readTrust(Buffer.from(JSON.stringify(value))), null)
  t.end()
})

t.test('a device hears its own topic only, and passes on what is no bundle', async (t) => {
  let link: LinkOptions | undefined
  const subscribed: string[] = []
  const open: OpenLink = async (options) => {
    link = options
    return {
      resumed: false,
      closed: new Promise(() => {}),
      publish: async () => {},
      subscribe: async (filter) => {
        subscribed.push(filter)
        throw new Error('denied')
      },
      session: () => undefined,
      end: async () => {},
    }
  }
  const [heard, other]: [string[], string[]] = [[], []]
  const hearing = hearingTrust(open, async (device, { version }) => {
    heard.push(`${device} ${version}`)
    throw new Error('the disk is full')
  })
  const names = { url: '', ca: '', clientId: 'd1', certificate: '', key: '', now: () => 0 }
  await hearing({ ...names, onMessage: (topic) => void other.push(topic) })
  t.strictSame(subscribed, [trustTopic('d1')], 'a denied subscription disturbs nothing')
  const bundle = Buffer.from(JSON.stringify({ version: 2, roots: ['R'], links: [] }))
  link?.onMessage?.(trustTopic('d1'), bundle)
  link?.onMessage?.(trustTopic('d2'), bundle)
  link?.onMessage?.(trustTopic('d1'), Buffer.from('{'))
  t.strictSame(heard, ['d1 2'])
  t.strictSame(other, [trustTopic('d2'), trustTopic('d1')])
})
