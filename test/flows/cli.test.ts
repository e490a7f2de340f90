import { once } from 'node:events'
import { existsSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import type { DevicePolicyView, FleetPolicyView } from '#shared/api'
import { openJsonClient } from '#shared/json-client'
import { generateKey } from '#shared/pki/keys'
import { createCsr } from '#shared/pki/x509'
import { run as runCli } from '../../operator/cli.ts'
import type { Terminal } from '../../operator/terminal.ts'
import { interrupt, scratch, startMuster } from '../support/muster.ts'
import { MUSTER, muster, startPlane } from '../support/plane.ts'

const plane = await startPlane(t)
const directory = scratch(t)
const device = openJsonClient({ url: plane.ready.enrollment, ca: readFileSync(plane.ready.caFile, 'utf8') })
t.teardown(() => device.close())

/** `muster <words> --data …`, split at spaces, in this process: nobody is at its terminal. */
async function run(words: string, ...more: string[]) {
  const [stdout, stderr]: [string[], string[]] = [[], []]
  const terminal: Terminal = {
    out: (text) => void stdout.push(`${text}\n`),
    err: (text) => void stderr.push(`${text}\n`),
    canAsk: false,
    isScreen: false,
    ask: async () => '',
    paint: (_, text) => text,
  }
  const other = async () => t.fail(`${words} is not a command of the operator`)
  const programs = { enrollment: other, broker: other, sim: other, bench: other, bin: MUSTER, terminal }
  const status = await runCli([...words.split(' '), ...more, '--data', plane.data], programs)
  return { status, stdout: stdout.join(''), stderr: stderr.join('') }
}

/** The document that `muster <words> --json` prints, which has to be all of stdout. */
async function document(words: string, ...more: string[]) {
  const { status, stdout, stderr } = await run(words, ...more, '--json')
  const parsed = JSON.parse(stdout) as Document // the assertions of the test look at the rest
  t.equal(parsed.schemaVersion, 1, `${words}: ${stderr}`)
  return { ...parsed, status }
}

interface Document {
  readonly schemaVersion: number
  readonly id: string
  readonly token: string
}

async function enroll(token: string, id: string): Promise<void> {
  const csr = await createCsr({ key: generateKey(), commonName: id })
  await device.send('POST', '/v1/enroll', { token, csr: csr.pem })
}

t.test('a token is alone on stdout, so that a script can keep it', async (t) => {
  const made = await run('token create --batch lab --uses 3 --expires 24h')
  t.equal(made.status, 0, made.stderr)
  t.match(made.stdout, /^mst_[A-Za-z0-9_-]{40,}\n$/)
  t.match(made.stderr, /expires in (1d|23h 59m|24h)/)
  for (const id of ['lamp', 'fan', 'pump']) await enroll(made.stdout.trim(), id)

  const listed = await document('token list --batch lab')
  t.match(listed, { tokens: [{ batch: 'lab', state: 'spent', uses: 3, used: 3 }] })
  t.notMatch(JSON.stringify(listed), made.stdout.trim(), 'the secret is shown once')
})

t.test('a policy is shown, asked, rehearsed and applied; its faults have lines', async (t) => {
  t.match(await document('policy show default'), { fleet: 'default', policyEpoch: 1 })
  t.match((await run('device tag lamp site=oslo floor=2')).stdout, /site +oslo/)
  t.match(await document('device tag lamp floor='), { device: 'lamp', attributes: { site: 'oslo' } })
  t.match(await run('device tag lamp oslo'), { status: 2, stderr: /name=value/ })
  t.match(await run('device tag lamp __proto__=x'), { status: 2 })
  const asked = await document('policy check lamp publish devices/lamp/up --qos 1')
  t.match(asked, { status: 0, allowed: true, rule: { scope: 'fleet', list: 'publish', index: 0 } })
  const denied = await run('policy check lamp subscribe devices/#')
  t.match(denied, { status: 8, stdout: /may not subscribe to devices\/#: rules allow a part/ })
  t.match(await run('policy check lamp receive x'), { status: 2 })
  t.match(await run('policy check nobody publish x'), { status: 3 })

  const file = join(directory, 'policy.json')
  const rules = [
    'devices/${device.id}/#',
    {
      topic: 'sites/${device.attributes.site}/#',
      maxQos: 1,
      when: { attributes: { site: ['oslo', 'bergen'] } },
    },
    { topic: 'devices/+/secret', effect: 'deny' },
  ]
  const policy = { publish: rules, subscribe: ['devices/${device.id}/commands/#'] }
  writeFileSync(
    file,
    JSON.stringify({ policy: { ...policy, publish: ['a#', { topic: 'x', maxQos: 3 }] } }, null, 2),
  )
  const faulty = await run('policy apply default', file, '--dry-run')
  t.equal(faulty.status, 2)
  t.match(faulty.stderr, /policy\.json": 7:19: publish\[1\]\.maxQos: cannot be 3/)
  writeFileSync(file, '{ "publish": [,] }')
  t.match(await run('policy apply default', file), { status: 2, stderr: /JSON/ })

  writeFileSync(file, JSON.stringify(policy))
  const rehearsed = await document('policy apply default', file, '--dry-run')
  t.match(rehearsed, { dryRun: true, devices: 3, examined: 3, affected: 3 })
  t.match((await run('policy apply default', file, '--dry-run')).stdout, /fleets\/\$\{device\.fleet\}/)
  t.match(await document('policy show default'), { policyEpoch: 1 }, 'a rehearsal changes nothing')
  t.match(await document('policy apply default', file), { policyEpoch: 2, policy })
  t.match((await run('policy check lamp publish sites/oslo/x --qos 1')).stdout, /lamp may publish/)
  t.match((await run('policy check fan publish sites/oslo/x')).stdout, /fan may not/, 'it has no site')
  t.match((await run('policy check lamp publish sites/oslo/x --qos 2')).stdout, /above maxQos 1/)
  t.match(
    (await run('policy check lamp publish devices/lamp/secret')).stdout,
    /publish\[2\] deny devices\/\+\/secret/,
  )
  t.match((await run('fleet list')).stdout, /!devices\/\+\/secret/)

  writeFileSync(file, JSON.stringify({ publish: ['own/#'], subscribe: [] }))
  t.match((await run('policy apply lamp', file, '--device')).stdout, /own publish\[0\] +allow +own\/#/)
  t.match((await run('policy check lamp publish devices/lamp/up')).stdout, /may not/)
  t.match((await run('policy show lamp')).stdout, /Own policy +yes/)
  t.match(await run('policy remove lamp'), { status: 0 })
  t.match((await run('policy check lamp publish devices/lamp/up')).stdout, /may publish/)
  t.match((await run('audit list')).stdout, /fleet\.policy[\s\S]+device\.policy/)
  writeFileSync(file, JSON.stringify({ publish: ['#'], subscribe: ['#', 'muster/#'] }))
  t.match(await run('policy apply lamp', file, '--device'), { status: 0 })
  for (const words of ['subscribe muster/presence/#', 'subscribe $share/g/x', 'publish muster/presence/x']) {
    t.match(await run(`policy check lamp ${words}`), { status: 8, stdout: /may not/ }, words)
  }
  t.match(await run('policy remove lamp'), { status: 0 })
  const before = {
    publish: ['devices/${device.id}/#'],
    subscribe: ['devices/${device.id}/#', 'fleets/${device.fleet}/broadcast/#'],
  }
  writeFileSync(file, JSON.stringify(before))
  t.match(await run('policy apply default', file), { status: 0 })
})

t.test('limits of a policy are shown, rehearsed and applied; their faults have lines', async (t) => {
  const file = join(directory, 'limits.json')
  const { policy } = (await document('policy show default')) as unknown as FleetPolicyView // by its command
  const write = (limits: object) =>
    writeFileSync(file, JSON.stringify({ policy: { ...policy, limits } }, null, 2))
  write({ subscriptions: 2.5, packetBytes: 1 })
  const faulty = await run('policy apply default', file)
  t.equal(faulty.status, 2)
  t.match(
    faulty.stderr,
    /\d+:\d+: limits\.subscriptions: must be a whole number from 1 to 100000, not 2\.5; \d+:\d+: limits\.packetBytes: is not known; limits are subscriptions, /,
  )
  write({ subscriptions: 2, filterLevels: 4, publishPerSecond: 0 })
  t.match(await document('policy apply default', file, '--dry-run'), {
    ...{ affected: 3, cuts: [] },
    limits: [
      { limit: 'subscriptions', before: null, after: 2, devices: 3 },
      { limit: 'filterLevels', before: null, after: 4, devices: 3 },
      { limit: 'publishPerSecond', before: null, after: 0, devices: 3 },
    ],
  })
  const rehearsed = await run('policy apply default', file, '--dry-run')
  t.match(rehearsed.stdout, /subscriptions +that of the broker +2 +3 /)
  const applied = await run('policy apply default', file)
  t.match(
    applied.stdout,
    /subscriptions +2 +fleet[\s\S]+queueMessages +1000 +broker \(its --limit, or this\)/,
  )
  write({ publishPerSecond: 10 })
  t.match(await document('policy apply default', file, '--dry-run'), {
    limits: [
      { limit: 'subscriptions', before: 2, after: null },
      { limit: 'filterLevels', before: 4, after: null },
      { limit: 'publishPerSecond', before: 0, after: 10 },
    ],
  })

  write({ subscriptions: 5, queueMessages: 10 })
  t.match(await document('policy apply lamp', file, '--device'), { own: { limits: { subscriptions: 5 } } })
  const { limits } = (await document('policy show lamp')) as unknown as DevicePolicyView // as above
  t.match(
    limits.filter(({ from }) => from !== null),
    [
      { limit: 'subscriptions', value: 5, from: 'own' },
      { limit: 'filterLevels', value: 4, from: 'fleet' },
      { limit: 'queueMessages', value: 10, from: 'own' },
      { limit: 'publishPerSecond', value: 0, from: 'fleet' },
    ],
  )
  t.match(await run('policy check lamp subscribe devices/lamp/commands/a'), { status: 0 })
  t.match(await run('policy check lamp subscribe devices/lamp/commands/a/b'), {
    status: 8,
    stdout: /may not .*: it has 5 levels, and fleet limits\.filterLevels allows 4/,
  })
  write({ subscriptions: 1 })
  t.match(await document('policy apply default', file, '--dry-run'), {
    limits: [
      { limit: 'subscriptions', before: 2, after: 1, devices: 2 },
      { limit: 'filterLevels', devices: 3 },
      { limit: 'publishPerSecond', devices: 3 },
    ],
  })
  t.match(await run('policy remove lamp'), { status: 0 })
  writeFileSync(file, JSON.stringify(policy))
  t.match(await run('policy apply default', file), { status: 0 })
})

t.test('a token can be limited to the ids in a file, and cancelled', async (t) => {
  const ids = join(directory, 'ids')
  writeFileSync(ids, '# two lamps\nlamp-1\r\n\n  lamp-2\n')
  const made = await document('token create --batch listed --uses 2 --naming list --devices', ids)
  t.match(made, { listed: 2, batch: 'listed', state: 'open', expiresAt: null })
  const cancelled = await run('token cancel', made.id)
  t.equal(cancelled.status, 0, cancelled.stderr)
  await t.rejects(enroll(made.token, 'lamp-1'), { code: 'token_cancelled' })
  t.equal((await run('token create --batch b --uses 1 --devices', join(directory, 'nothing'))).status, 3)
})

t.test('fleets, batches and devices are made and listed', async (t) => {
  t.equal((await run('fleet create lights --lifetime 2h --publish lights/#')).status, 0)
  t.equal((await run('batch create lights-1 --fleet lights')).status, 0)
  t.equal((await run('batch create lights-1 --fleet lights')).status, 5, 'there is one already')
  t.equal((await run('batch create lights-2 --fleet none')).status, 3)
  t.match(await document('fleet list'), {
    fleets: [
      {},
      {},
      { id: 'lights', lifetimeMs: 7_200_000, policy: { publish: ['lights/#'], subscribe: [] } },
    ],
  })
  t.match((await run('batch list')).stdout, /lights-1 +lights +csr/)
  const page = await document('device list --batch lab --limit 2')
  t.match(page, { devices: [{ id: 'fan' }, { id: 'lamp' }], next: 'lamp' })
  t.match(await document('device list --batch lab --after lamp'), { devices: [{ id: 'pump' }], next: null })
  t.match((await run('device show lamp')).stdout, /Fleet +default[\s\S]+State +active/)
  t.equal((await run('device show nobody')).status, 3)
})

t.test('a hold prints its receipt, and is undone by its id or by the device', async (t) => {
  const held = await document('hold lamp --reason privilegeWithdrawn --purge-retained')
  t.match(held, {
    status: 0,
    sessionsClosed: 0,
    closeMs: { max: 0 },
    brokers: [{ broker: 'broker', state: 'applied' }],
    survivors: [],
  })
  t.match((await run('explain lamp')).stdout, /R-HELD[\s\S]+muster release/)
  t.equal((await run('release', held.id)).status, 0)
  t.match(await document('explain lamp'), { verdict: 'admitted', code: null })

  t.match(await document(`plan show ${held.id}`), { purgeRetained: true, state: 'undone' })
  const { stdout, stderr } = await run('hold lamp --purge-retained')
  t.match(stderr, /their retained messages are forgotten for good/)
  t.match(
    (await run('plan show', /Receipt (p-\w+)/.exec(stdout)?.[1] ?? '')).stdout,
    /Retained messages +forgotten/,
  )
  t.equal((await run('release lamp')).status, 0)
  const again = await run('release lamp')
  t.equal(again.status, 5)
  t.match(again.stderr, /it is under no hold/)
})

t.test('a hold on a batch is not released by the name of one of its devices', async (t) => {
  const held = await document('hold --batch lab --yes')
  const refused = await run('release lamp')
  t.equal(refused.status, 5)
  t.match(refused.stderr, new RegExp(`muster release ${held.id} \\(batch lab\\)`))
  t.equal((await run('release', held.id)).status, 0)
})

t.test('more than one device is not revoked without a word', async (t) => {
  const refused = await run('revoke lamp fan --now')
  t.equal(refused.status, 2)
  t.match(
    refused.stderr,
    /revoke 2 device\(s\)[\s\S]+✘ Cannot revoke 2 devices without a confirmation: .*--yes/,
  )
  t.match(await document('explain lamp'), { verdict: 'admitted' })
})

t.test('a revocation can be undone while its time lasts', async (t) => {
  const revoked = await run('revoke fan pump --undo 10m --yes')
  t.equal(revoked.status, 0, revoked.stderr)
  const [, id = ''] = /Undo until then: muster release (\S+)/.exec(revoked.stderr) ?? []
  t.match(await document('plan show', id), { action: 'revoke', state: 'applied', counts: { devices: 2 } })
  t.equal((await run('release', id)).status, 0)
  t.match(await document('explain fan'), { verdict: 'admitted' })
})

t.test('a revocation with --now is final, and explained', async (t) => {
  const revoked = await document('revoke lamp --now --reason keyCompromise --yes')
  t.match(revoked, { status: 0, brokers: [{ state: 'applied' }], survivors: [] })
  const explained = await run('explain lamp')
  t.match(explained.stdout, /R-REVOKED[\s\S]+muster device reissue lamp/)
  t.equal((await run('release', revoked.id)).status, 5, 'it cannot be undone')
  t.match((await run('plan list')).stdout, /revoke +device lamp +1 +final/)

  const reissued = await run('device reissue lamp')
  await enroll(reissued.stdout.trim(), 'lamp')
  t.match(await document('explain lamp'), { verdict: 'admitted' })
})

t.test('a service gets a key that only its owner reads, and is not overwritten', async (t) => {
  const made = await run('service create backend --out', directory)
  t.equal(made.status, 0, made.stderr)
  const key = join(directory, 'backend.key')
  t.equal(statSync(key).mode & 0o777, 0o600)
  t.match(readFileSync(join(directory, 'backend.crt'), 'utf8'), /^-----BEGIN CERTIFICATE/)
  const before = readFileSync(key, 'utf8')
  t.equal((await run('service create backend --out', directory)).status, 5)
  t.equal(readFileSync(key, 'utf8'), before)
})

t.test('brokers are listed, invited and forgotten', async (t) => {
  t.match(await document('broker list'), { brokers: [{ id: 'broker', state: 'up', behind: Number }] })
  const invitation = await document('broker invite --id north')
  t.match(invitation, { url: /^https:/, token: /^mst_/, root: /BEGIN CERTIFICATE/ })
  t.equal((await run('broker forget north')).status, 0)
  t.equal((await run('broker forget nobody')).status, 3)
})

t.test('an API token is shown once and cancelled by its name', async (t) => {
  const made = await run('operator token create ci --expires 30d')
  t.match(made.stdout, /^\S+\n$/)
  const admin = openJsonClient({
    url: plane.ready.admin,
    ca: readFileSync(plane.ready.caFile, 'utf8'),
    apiToken: made.stdout.trim(),
  })
  t.match(await admin.send('GET', '/v1/status'), { trustDomain: String })
  t.equal((await run('operator token cancel ci')).status, 0)
  await t.rejects(admin.send('GET', '/v1/status'), { code: 'token_unknown' })
  await admin.close()
})

t.test('the status is for people, and for programs', async (t) => {
  const text = await run('status')
  t.match(text.stdout, /Devices +\d+ active[\s\S]+BROKER[\s\S]+broker +up/)
  t.match(await document('status'), { trustDomain: 'muster.local', brokers: [{ id: 'broker' }] })
  t.equal((await run('status --watch --json')).status, 2)
  t.equal((await run('demo clear')).status, 0)
})

t.test('a status that is watched goes on until Ctrl-C, and ends well', async (t) => {
  const watching = startMuster(t, ['status', '--watch', '--data', plane.data])
  await once(watching.child.stdout ?? watching.child, 'data')
  const { status, stdout } = await interrupt(watching)
  t.equal(status, 0)
  t.match(stdout, /Trust domain +muster\.local/)
  t.notMatch(stdout, '\u001b', 'a pipe gets no control sequences')
})

t.test('a mistake is one sentence and status 2', async (t) => {
  const wrong = {
    'revoke lamp --now --undo 5m': /--now and --undo/,
    'revoke lamp --undo soon': /duration "soon"/,
    'revoke lamp --reason boredom': /--reason "boredom"/,
    'hold lamp --batch lab': /Cannot tell what is meant/,
    'token create --batch lab --uses many': /--uses "many"/,
    'token create --uses 1': /--batch/,
    'token create --batch lab --uses 1 --expires 2001-01-01': /past/,
    'hold --nonsense': /--nonsense/,
    nonsense: /nonsense/,
  }
  for (const [words, says] of Object.entries(wrong)) {
    const { status, stdout, stderr } = await run(words)
    t.equal(status, 2, words)
    t.match(stderr, says)
    t.equal(stdout, '', words)
    t.equal(stderr.split('\n').length, 2, `${words}: ${stderr}`)
  }
  t.match(await document('hold --nonsense'), { status: 2, error: { code: 'invalid_request' } })
})

t.test('what the program writes to its two streams is what the commands said', async (t) => {
  const listed = await muster(['batch', 'list', '--data', plane.data, '--json'])
  t.equal(listed.status, 0)
  t.equal(listed.stderr, '')
  t.match(JSON.parse(listed.stdout), { schemaVersion: 1, batches: Array })
  const wrong = await muster(['hold', 'lamp', 'fan', '--data', plane.data])
  t.equal(wrong.status, 2, 'the status of the process is the one of the command')
  t.equal(wrong.stdout, '')
})

t.test('where no plane is, that is said with status 7', async (t) => {
  const nowhere = await muster(['status', '--data', join(directory, 'nowhere')])
  t.equal(nowhere.status, 7)
  t.match(nowhere.stderr, /^✘ Cannot find a plane in ".*nowhere".*\n {2}Start the plane with `muster up`/)
  t.notOk(existsSync(join(directory, 'nowhere')), 'looking makes nothing')
  const profile = join(directory, 'profile.json')
  writeFileSync(
    profile,
    JSON.stringify({
      ...JSON.parse(readFileSync(plane.ready.operatorProfile, 'utf8')),
      admin: 'https://127.0.0.1:9',
    }),
  )
  const stopped = await muster(['status', '--profile', profile, '--json'])
  t.equal(stopped.status, 7)
  t.match(JSON.parse(stopped.stdout), { error: { code: 'unreachable' } })
})

t.test('the profile of a fleet is shown, set from a file, and refused by name', async (t) => {
  const file = join(directory, 'profile.json')
  writeFileSync(file, JSON.stringify({ keys: ['Ed25519'], graceMs: 86_400_000, serverKeys: true }))
  t.match(await run('fleet create gates --certificates', file), { status: 0, stdout: /gates is made/ })
  const shown = await run('fleet profile show gates')
  t.match(shown, { status: 0, stdout: /Keys +Ed25519\n/ })
  t.match(shown.stdout, /Grace +1d after the end/)
  t.match(shown.stdout, /Keys made by the plane +where a device asks for it/)

  const printed = await run('fleet profile show gates --json')
  writeFileSync(file, printed.stdout)
  t.match(
    await run('fleet profile set gates', file),
    { status: 0, stdout: shown.stdout },
    'what show prints, set takes',
  )
  writeFileSync(file, '{}')
  t.match(await document('fleet profile set gates', file), {
    fleet: 'gates',
    profile: { keys: ['P-256', 'P-384'], graceMs: 0, serverKeys: false },
  })

  const wrong: [string, number, RegExp][] = [
    ['{"keys":["P-521"]}', 2, /\/keys/],
    ['{"lifetimeMs":1}', 2, /\/lifetimeMs must be >= 60000/],
    ['{"san":[{"dns":"${device.serial}"}]}', 2, /is not one of device\.id/],
    ['{', 2, /JSON/],
  ]
  for (const [text, status, stderr] of wrong) {
    writeFileSync(file, text)
    t.match(await run('fleet profile set gates', file), { status, stderr }, text)
  }
  t.match(await run('fleet profile show nowhere'), { status: 3, stderr: /nowhere/ })
  t.match(await run('fleet profile set gates', join(directory, 'missing.json')), { status: 2 })
})

t.test('a rotation moves windows, and says how it goes', async (t) => {
  const token = (await run('token create --batch turning --uses 2')).stdout.trim()
  for (const id of ['rotor-1', 'rotor-2']) await enroll(token, id)
  const begun = await document('device rotate --batch turning --over 1h')
  t.match(begun, { status: 0 })
  const { id } = begun
  t.match(await document(`device rotate --status ${id}`), { id, overMs: 3_600_000 })
  t.match(await run(`device rotate --status ${id}`), { status: 0, stdout: new RegExp(id) })
  t.match(await run('device rotate rotor-1'), { status: 0 })
  t.match(await run('device rotate --batch none'), { status: 3 })
  t.match(await run('device rotate rotor-1 --batch turning'), { status: 2 }, 'one scope')
  t.match(await run('device rotate rotor-1 --over soon'), {
    status: 2,
    stderr: /Cannot read the duration/,
  })
  t.match(await run('device rotate --over 2000d --batch turning'), {
    status: 2,
    stderr: /overMs must be <=/,
  })
  t.match(await run('device rotate --status rot-none'), { status: 3 })
})

t.test('events are told from a cursor on, and those of one device by themselves', async (t) => {
  const told = await run('events tail --no-follow --ndjson')
  t.equal(told.status, 0, told.stderr)
  const messages = told.stdout
    .trim()
    .split('\n')
    .map((one) => JSON.parse(one))
  const events = messages.filter(({ type }) => type === 'event')
  t.ok(events.length >= 3)
  const sequences = events.map(({ sequence }) => sequence)
  t.same(
    sequences,
    [...sequences].sort((a, b) => a - b),
  )
  const [first] = sequences
  const later = await run(`events tail --no-follow --after ${first}`)
  t.equal(later.stdout.trim().split('\n').length, events.length - 1)
  const lamps = (await run('events tail --no-follow --device lamp')).stdout.trim().split('\n').length
  t.ok(lamps > 1 && lamps < events.length, 'its own, and those of what covers it')
  t.match(await document('device timeline lamp'), { device: 'lamp' })
  t.equal((await run('device timeline lamp')).stdout.trim().split('\n').length, lamps)
  t.match(await run('events tail --no-follow --after x'), { status: 2 })
  const all = (await document('events tail --no-follow')) as unknown as { messages: { type: string }[] }
  t.equal(all.messages.filter(({ type }) => type === 'event').length, events.length)
  t.match(await run('device timeline nobody'), { status: 3 })
})

t.test('a command whose output nobody reads any more ends without a word', async (t) => {
  const { child, ended } = startMuster(t, ['events', 'tail', '--data', plane.data])
  child.stdout?.destroy()
  t.match(await ended, { status: 0, stderr: '' })
})

t.test('a policy file is taken as it stands, or not at all', async (t) => {
  const file = join(directory, 'odd.json')
  const policy = JSON.stringify({ publish: ['a'], subscribe: [] })
  const faults = async (octets: string | Buffer) => {
    writeFileSync(file, octets)
    return run('policy apply default', file, '--dry-run')
  }
  t.match(await faults(`\ufeff${policy}`), { status: 0 }, 'a byte order mark is no part of it')
  t.match(await faults(Buffer.from(policy.replace('a', '\xff'), 'latin1')), {
    status: 2,
    stderr: /not UTF-8/,
  })
  const twice = '{"publish": [{"topic": "a", "effect": "deny",\n "effect": "allow"}], "subscribe": []}'
  t.match(await faults(twice), { status: 2, stderr: /2:2: "effect" is there twice/ })
  t.match(await faults('{"publish": ["a"], "subscribe": [], "\\u0070ublish": []}'), {
    stderr: /"publish" is there twice/,
  })
  t.match(await run('policy apply default', join(directory, 'none.json')), { status: 2, stderr: /ENOENT/ })
  t.match(await run('policy check lamp publish devices/lamp/x --address 999.1.1.1'), {
    status: 2,
    stderr: /address "999\.1\.1\.1"/,
  })
})

t.test('what one device is granted is shown with the limits and conditions of each rule', async (t) => {
  const file = join(directory, 'limited.json')
  const rule = { topic: 'net/#', maxQos: 1, when: { sources: ['10.0.0.0/8'] } }
  writeFileSync(file, JSON.stringify({ publish: [rule], subscribe: [] }))
  t.match(await run('policy apply lamp', file, '--device'), { status: 0 })
  t.match((await run('policy show lamp')).stdout, /net\/# +maxQos=1 sources=\["10\.0\.0\.0\/8"\]/)
  t.match(await document('policy show lamp'), { rules: [{ filter: 'net/#', rule }] })
  t.match(await run('policy remove lamp'), { status: 0 })
  t.match(await document('policy show services'), {
    limits: [{}, {}, {}, { limit: 'inflightOutbound', value: 400 }],
  })
})

t.test('a second factor is asked for, shown without its secret, and taken back', async (t) => {
  t.match(await document('factor show lights --fleet'), { kind: 'none' })
  const made = await run('factor password lights --fleet')
  t.equal(made.status, 0, made.stderr)
  const password = made.stdout.trim()
  t.match(made.stdout, /^[\w-]{20,}\n$/, 'alone on stdout, so that a script can keep it')
  const shown = await run('factor show lights --fleet')
  t.match(shown.stdout, /Second factor +password/)
  t.notMatch(shown.stdout, password)
  const keys = join(directory, 'jwks.json')
  writeFileSync(keys, '{"keys": []}')
  const wanted = 'factor jwt lights --fleet --issuer https://id.example.net --audience muster --jwks'
  t.match(await run(wanted, keys), { status: 2 }, 'a set without a key opens to nobody')
  t.match(await run(wanted, keys, '--algorithm', 'none'), { status: 2, stderr: /ES256/ })
  t.match(await run(wanted, join(directory, 'nothing')), { status: 2, stderr: /Cannot read/ })
  for (const place of ['http://id.example.net/keys', 'https://u:p@id.example.net/keys', 'https://'])
    t.match(await run(wanted, place), { status: 2, stderr: /URL/ }, place)
  const nameless = 'factor jwt lights --fleet --audience muster --jwks https://id.example.net/keys --issuer'
  t.match(await run(nameless, ''), { status: 2, stderr: /empty --issuer/ })
  t.equal((await run('factor clear lights --fleet')).status, 0)
  t.match(await document('factor show lights --fleet'), { kind: 'none' })
  t.match(await run('factor show nobody'), { status: 3 })
})
